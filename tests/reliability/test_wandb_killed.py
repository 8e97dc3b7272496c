"""W&B's own process killed in mid-run: the training goes on, and its end says that W&B has not all numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from noising.runs.folder import Run
from tests.helpers import AS_TRAINED
from tests.reliability.helpers import SAID, forked, rows, train


def children(parent: int) -> dict[str, int]:
    """Process ids of the children of a process, by their program's name."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, facts = stat.read_text().partition("(")[2].rpartition(")")
        if int(facts.split()[1]) == parent:
            found[name] = int(stat.parent.name)
    return found


class KillWandB(Callback):
    """Kills W&B's process at a step."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 7:
            os.kill(children(os.getpid())["wandb-core"], signal.SIGKILL)


@pytest.mark.slow
def test_wandb_killed_in_mid_run(trained: Path, tmp_path: Path) -> None:
    kill = "+callbacks.kill._target_=tests.reliability.test_wandb_killed.KillWandB"
    process = forked(train, tmp_path, [*AS_TRAINED, "hydra.run.dir=run", "logger=[csv,wandb]", kill])
    process.join(300)
    said, run = (tmp_path / SAID).read_text(), Run(tmp_path / "run")
    assert process.exitcode == 1, said
    assert "Traceback" not in said
    assert said.count("wandb cannot be written (Connection lost); the work goes on") <= 1  # its place is the log
    assert (
        said.strip().splitlines()[-1]
        == "error: run is finished, but these files are incomplete: wandb (Connection lost)"
    )
    assert (run.path / "train.log").read_text().count("wandb cannot be written") == 1
    assert rows(run) == rows(Run(trained))
    assert run.status == "finished"
