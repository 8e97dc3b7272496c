"""A long run holds no more memory and no more open files at its end than soon after its start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from noising.training.module import DiffusionModule
from tests.helpers import SMALL, Command

SETTLED, LAST = 1000, 10_000


@pytest.mark.slow
def test_memory_and_file_handles_do_not_grow(noising: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[int, tuple[float, int]] = {}
    end_step = DiffusionModule.end_step

    def measured(module: DiffusionModule, batch_idx: int) -> None:
        end_step(module, batch_idx)
        if module.global_step % 1000 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            held[module.global_step] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))

    monkeypatch.setattr(DiffusionModule, "end_step", measured)
    often = [
        f"trainer.max_steps={LAST}",
        "trainer.val_check_interval=100",
        "checkpoint_every_n_steps=100",
        "keep_checkpoints=3",
        "callbacks.samples.every_n_steps=100",
        "callbacks.quality.every_n_steps=100",
        "callbacks.quality.keep_best=true",
        "metrics.n=70",
        "metrics.repeats=1",
        "logger=[csv,tensorboard]",
    ]
    outcome = noising("train", *SMALL[:-1], *often, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    grown = held[LAST][0] - held[SETTLED][0]
    assert grown < 20, f"{grown:.1f} MiB more after {LAST - SETTLED} steps: {held}"
    assert held[LAST][1] <= held[SETTLED][1], held
