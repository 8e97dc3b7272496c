"""SIGINT, SIGTERM and SIGUSR1 in every phase of a training: the command ends, and the run goes on or was not begun."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noising.runs.folder import Run
from tests.helpers import run_command
from tests.reliability.helpers import LEARNING, SAID, forked, require_same, train

CALLBACKS = "noising.training.callbacks"
PHASES = {
    "imports": "noising.cli.launch:importlib.import_module",
    "composing": "noising.cli.overrides:Composer.compose",
    "building": "noising.experiment:Experiment.callbacks",
    "first step": "noising.training.module:DiffusionModule.on_train_start",
    "training": "noising.training.ema:EMA.update",
    "saving": "noising.training.module:DiffusionModule.on_save_checkpoint",
    "validation": "noising.training.validation:BoundEvaluation.update",
    "sampling": f"{CALLBACKS}.samples:SampleGrid._draw",
    "test": "noising.training.module:DiffusionModule.on_test_epoch_end",
    "pictures": f"{CALLBACKS}.samples:save_animation",
    "summary": "noising.commands.train:print_summary",
}
"""What a signal arrives in the middle of."""
BEFORE_A_RUN = ("imports", "composing", "building")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def train_until(folder: Path, options: list[str], phase: str, number: int) -> None:
    """The command, to which a signal is sent as this phase begins."""
    module, _, path = PHASES[phase].partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    work: Callable[..., Any] = getattr(owner, name)

    def stopped(*args: Any, **options: Any) -> Any:
        setattr(owner, name, work)
        os.kill(os.getpid(), number)
        return work(*args, **options)

    setattr(owner, name, stopped)
    train(folder, options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole")
    assert run_command("train", folder, *LEARNING).code == 0
    return Run(folder / "run")


def told_to_stop(folder: Path, phase: str, number: int) -> int | None:
    process = forked(train_until, folder, [*LEARNING, "resume=true"], phase, number)
    process.join(120)
    return process.exitcode


def require_left_well(folder: Path, whole: Run, phase: str, number: int, code: int | None) -> None:
    """The signal's code, no traceback, a folder of no run or a plainly unfinished one, and the whole run of it."""
    said, run = (folder / SAID).read_text(), Run(folder / "run")
    assert code in {128 + number, -number} - ({-number} if number == signal.SIGINT else set()), said
    assert "Traceback" not in said
    if phase in BEFORE_A_RUN:
        assert run.status == "none"
    elif phase == "summary":
        assert run.status == "finished"
    elif code == 128 + number:
        assert run.status == "interrupted"
        assert said.splitlines()[-1] == "interrupted: run; go on with resume=run"
    assert run_command("train", folder, *LEARNING, "resume=true").code == 0
    require_same(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_told_to_stop_in_any_phase(whole: Run, phase: str, number: signal.Signals, tmp_path: Path) -> None:
    require_left_well(tmp_path, whole, phase, number, told_to_stop(tmp_path, phase, number))
