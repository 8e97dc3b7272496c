"""A callback is called in a step where it has something to do, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.profilers import Profiler

from noising.experiment import Experiment
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.training.hooks import OF_A_STEP, leave_out_unused
from tests.helpers import SMALL, composed


class Own(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None: ...


class Inherited(Own):
    """One that inherits a hook of its own."""


def test_what_a_callback_has_is_left_to_it() -> None:
    given = LambdaCallback(on_before_backward=lambda *facts: None)
    callbacks: list[Callback] = [Own(), Inherited(), given, Callback()]
    leave_out_unused(callbacks)
    kept = [{name for name in OF_A_STEP if callable(getattr(callback, name))} for callback in callbacks]
    assert kept == [{"on_train_batch_end"}, {"on_train_batch_end"}, {"on_before_backward"}, set()]
    assert callable(callbacks[0].on_fit_start)


class Counting(Profiler):
    """Counts what Lightning calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def start(self, action_name: str) -> None:
        self.calls[action_name] = self.calls.get(action_name, 0) + 1

    def stop(self, action_name: str) -> None: ...


def test_a_step_calls_no_empty_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten callbacks of six hooks each are eight calls, two of them the checkpoint's, around the optimizer's step."""
    experiment, results = Experiment(composed(*SMALL, "trainer.max_steps=20")), Results(Run(tmp_path))
    trainer = experiment.trainer(results, experiment.callbacks(results))
    trainer.profiler = profiler = Counting()
    trainer.fit(experiment.module, experiment.data)
    of_a_step = {
        name: count
        for name, count in profiler.calls.items()
        if name.startswith("[Callback]") and name.rpartition(".")[2] in OF_A_STEP
    }
    assert set(of_a_step.values()) == {20}
    assert sorted(name.rpartition(".")[0].removeprefix("[Callback]").split("{")[0] for name in of_a_step) == [
        "EMA",
        "LastCheckpoint",
        "LastCheckpoint",
        "Preemption",
        "QualityCheck",
        "SampleGrid",
        "StepProgress",
        "_EndOfStep",
    ]


def test_no_step_walks_over_the_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those to clip and to clear: a walk over all modules takes longer than the step of a small network."""
    walks = []
    walk = torch.nn.Module.named_modules
    monkeypatch.setattr(torch.nn.Module, "named_modules", lambda *a, **k: (walks.append(1), walk(*a, **k))[1])
    counts = []
    for steps in (3, 13):
        walks.clear()
        options = [option for option in SMALL if "every_n_steps" not in option and "interval" not in option]
        quiet = ["trainer.log_every_n_steps=50", "trainer.val_check_interval=50", "checkpoint_every_n_steps=50"]
        quiet += ["callbacks.samples=null", f"trainer.max_steps={steps}"]
        experiment, results = Experiment(composed(*options, *quiet)), Results(Run(tmp_path / str(steps)))
        experiment.trainer(results, experiment.callbacks(results)).fit(experiment.module, experiment.data)
        counts.append(len(walks))
    assert counts[0] == counts[1]
