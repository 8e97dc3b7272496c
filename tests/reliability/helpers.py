"""Commands in processes of their own, and runs compared bit by bit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from noising.cli.main import main
from noising.runs.folder import Run
from noising.training.checkpoints import load_checkpoint
from tests.helpers import FORKSERVER, SMALL, TRAIN, leave_figures_blank, read_table, same

SAID = "said"  # the file that a process's errors go to
TIMING = ("seconds", "share", "images_per_second")
LEARNING = [*SMALL, "times=loss_aware", "timesteps=10", "times.history=2", "hydra.run.dir=run"]


def train(folder: Path, options: Sequence[str]) -> None:
    """The command, in a process and a group of processes of its own."""
    os.setsid()
    os.chdir(folder)
    leave_figures_blank()
    for stream, target in ((1, os.devnull), (2, SAID)):
        os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = [str(TRAIN), *options]
    main("train")


def forked(work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process in which torch and Lightning are imported already."""
    process = FORKSERVER.Process(target=work, args=arguments)
    process.start()
    return process


def require_same(one: Run, other: Run) -> None:
    checkpoints = [load_checkpoint(run.last_checkpoint) for run in (one, other)]
    for name in ("state_dict", "ema", "optimizer_states", "lr_schedulers", "times", "loss_sums", "global_step"):
        same(*(checkpoint[name] for checkpoint in checkpoints), name)
    tables = [
        [{k: v for k, v in row.items() if not k.endswith(TIMING)} for row in read_table(run.metrics)]
        for run in (one, other)
    ]
    for row, again in zip(*tables, strict=True):
        assert {k: (v, again[k]) for k, v in row.items() if v != again[k]} == {}, row["step"]
    numbers = [{k: v for k, v in run.summary.items() if "/" in k and not k.endswith(TIMING)} for run in (one, other)]
    assert numbers[0] == numbers[1]
    pictures = [[*sorted((run.path / "samples").iterdir()), run.samples_image] for run in (one, other)]
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    for a, b in zip(*pictures, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def rows(run: Run) -> list[dict[str, str]]:
    timing = ("train/images_per_second", "train/checkpoint_seconds")
    return [{k: v for k, v in row.items() if k not in timing} for row in read_table(run.metrics)]
