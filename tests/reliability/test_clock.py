"""The clock of the system set back in mid-run: no number depends on it, and the newest run is found after all."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from noising.runs.folder import Run
from noising.runs.resume import find_resumable
from tests.helpers import AS_TRAINED, Command
from tests.reliability.helpers import rows

DAY = 86_400


class SetBack(Callback):
    """From one step on the clock is a day behind."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            real, real_ns = time.time, time.time_ns
            PATCH.setattr(time, "time", lambda: real() - DAY)
            PATCH.setattr(time, "time_ns", lambda: real_ns() - DAY * 10**9)


PATCH = pytest.MonkeyPatch()


def test_no_number_depends_on_the_clock(trained: Path, noising: Command, tmp_path: Path) -> None:
    back = "+callbacks.back={_target_:tests.reliability.test_clock.SetBack,step:7}"
    began = time.monotonic()
    try:
        outcome = noising("train", *AS_TRAINED, "hydra.run.dir=run", "logger=tensorboard", back)
    finally:
        PATCH.undo()
    run, whole = Run(tmp_path / "run"), Run(trained)
    assert outcome.code == 0, outcome.err
    assert rows(run) == rows(whole)
    assert run.summary["test/bound"] == whole.summary["test/bound"]
    speed = run.summary["train/images_per_second"]
    assert 20 * 128 / (time.monotonic() - began) < speed < 1e6


def test_the_run_with_the_newest_file_goes_on(tmp_path: Path) -> None:
    """Not the one of the latest date in its name, which a wrong clock gave it."""
    for name, age in (("2031-01-01", 2 * DAY), ("2026-01-01", DAY)):
        overrides = tmp_path / name / "12-00-00" / ".hydra" / "overrides.yaml"
        overrides.parent.mkdir(parents=True)
        overrides.write_text("- seed=3\n")
        os.utime(overrides, (time.time() - age, time.time() - age))
    assert find_resumable(tmp_path, ["seed=3"]) == tmp_path / "2026-01-01" / "12-00-00"
