"""A loss that is not finite is named with its step, time and image, and ends the run or is left out."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.objectives import Regression
from noising.diffusion.schedules import Cosine
from noising.runs.folder import Run
from noising.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from noising.training.safety.divergence import DivergenceError, NonFiniteGuard, StepLog
from tests.helpers import AS_TRAINED, SMALL, Command, read_table, wandb_records

STEP, PLACE = 12, 3


class Alone:
    """As much of a module as a check needs."""

    class trainer:  # noqa: N801
        world_size = 1


def check(guard: NonFiniteGuard) -> None:
    guard.check(Alone(), Cosine(1000))  # type: ignore[arg-type]


def seen(step: int, *losses: float) -> StepLog:
    count = len(losses)
    t = torch.linspace(0.1, 0.9, count, dtype=torch.float64)
    return StepLog(step, t, torch.arange(100, 100 + count), torch.tensor(losses))


def test_the_first_image_that_is_not_finite_is_named() -> None:
    guard = NonFiniteGuard()
    guard.note(seen(6, 1.0, 2.0, 3.0))
    guard.note(seen(7, 1.0, math.inf, math.nan))
    guard.note(seen(8, math.nan, math.nan, math.nan))
    guard.note_gradient(7, torch.tensor(math.nan))
    half = float(Cosine(1000)(torch.tensor([0.5], dtype=torch.float64)).log_snr)
    with pytest.raises(DivergenceError) as error:
        check(guard)
    assert str(error.value) == (
        f"diverged at step 7: the loss of training image 101 (and of 1 more) is inf at t = 0.5, λ = {half:.4g}"
    )
    with pytest.raises(DivergenceError, match="at step 7"):  # the weights have not got better since
        check(guard)
    guard = NonFiniteGuard()
    guard.note_gradient(9, torch.tensor(math.inf))
    with pytest.raises(DivergenceError, match=r"^diverged at step 9: the gradient is not finite$"):
        check(guard)


def test_a_spike_is_logged_with_its_time(caplog: pytest.LogCaptureFixture) -> None:
    guard = NonFiniteGuard()
    for step in range(20):
        guard.note(seen(step, 1.0, 30.0 if step == 13 else 1.0, 1.0))
    with caplog.at_level(logging.WARNING):
        check(guard)
    assert "loss spike at step 13: 10.67, 10.7 times the median of the last 20" in caplog.text
    assert "t = 0.5, λ =" in caplog.text
    assert "training image 101" in caplog.text
    caplog.clear()
    for step in range(20):
        guard.note(seen(step, 1.0, 4.0 if step == 13 else 1.0))
    check(guard)
    assert caplog.text == ""


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of one image of one step is nan, in whatever process draws it."""
    forward = Regression.forward
    steps = iter(range(1000))

    def bad(self: Regression, denoiser: Denoiser, x: Tensor, *given: Any, **told: Any) -> dict[str, Tensor]:
        terms = forward(self, denoiser, x, *given, **told)
        if denoiser.training and next(steps) == STEP:
            factor = torch.ones(len(x))
            factor[PLACE] = math.nan
            terms["loss"] = terms["loss"] * factor
        return terms

    monkeypatch.setattr(Regression, "forward", bad)


@pytest.mark.usefixtures("poisoned")
def test_a_run_that_diverges_ends_with_its_step_and_keeps_what_was_good(noising: Command, tmp_path: Path) -> None:
    outcome = noising("train", *SMALL, "logger=wandb", "hydra.run.dir=run")
    assert outcome.code == 1
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert "diverged at step 12: the loss of training image" in line
    assert " is nan at t = 0." in line
    assert "λ = " in line
    assert "the last good checkpoint is from step 10" in line
    assert "skip_nonfinite_steps=true" in line
    run = Run(tmp_path / "run")
    assert run.status == "failed"
    (end,) = (record.exit.exit_code for record in wandb_records(run.path) if record.HasField("exit"))
    assert end == 1  # marked as failed there too
    kept = load_checkpoint(run.last_checkpoint)
    assert kept["global_step"] == 10
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())


@pytest.mark.usefixtures("poisoned")
def test_such_a_step_can_be_left_out_and_counted(noising: Command, tmp_path: Path) -> None:
    outcome = noising("train", *SMALL, "skip_nonfinite_steps=true", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    run = Run(tmp_path / "run")
    assert "step 12 is left out: its gradient is not finite; 1 in all" in (run.path / "train.log").read_text()
    rows = {int(row["step"]): row for row in read_table(run.metrics)}
    assert {step: float(row["train/skipped_steps"]) for step, row in rows.items()} == {5: 0, 10: 0, 15: 1, 20: 1}
    assert all(math.isfinite(float(row["train/loss"])) for row in rows.values())
    assert run.summary["train/skipped_steps"] == 1
    assert "steps left out, since their gradients were not finite: 1" in outcome.out
    kept = load_checkpoint(run.last_checkpoint)
    assert (kept["global_step"], kept["skipped_steps"]) == (20, 1)
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())
    (state,) = kept["optimizer_states"]
    assert {float(values["step"]) for values in state["state"].values()} == {19.0}


def test_leaving_out_nothing_changes_nothing(noising: Command, trained: Path, tmp_path: Path) -> None:
    assert noising("train", *AS_TRAINED, "skip_nonfinite_steps=true", "hydra.run.dir=run").code == 0
    one, two = (load_checkpoint(Run(path).last_checkpoint)["state_dict"] for path in (trained, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_leaving_out_is_given_up_where_it_does_not_help(noising: Command, tmp_path: Path) -> None:
    """A step that was finite has thrown the weights so far that no gradient is any more."""
    options = [
        "optimizer.lr=1e6",
        "skip_nonfinite_steps=true",
        "trainer.max_steps=40",
        "trainer.gradient_clip_val=null",
    ]
    outcome = noising("train", *SMALL, *options, "hydra.run.dir=run")
    assert outcome.code == 1
    line = outcome.err.strip().splitlines()[-1]
    assert line.startswith("error: diverged: the gradients of the 20 steps up to ")
    assert line.endswith("and leaving out more will not repair the weights; train again with a lower optimizer.lr")
    assert line.removeprefix("error: ") in (tmp_path / "run" / "train.log").read_text()
    assert Run(tmp_path / "run").status == "failed"


def test_a_bound_that_is_not_finite_is_no_result(noising: Command, trained: Path, tmp_path: Path) -> None:
    content = load_checkpoint(Run(trained).last_checkpoint)
    content["ema"]["weights"] = {name: weight * 1e30 for name, weight in content["ema"]["weights"].items()}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "wrecked.ckpt")
    outcome = noising("evaluate", "checkpoint=wrecked.ckpt", "bound=stratified", "bound.times=8", "hydra.run.dir=run")
    assert outcome.code == 1
    assert "error: the bound of the test images is not finite with the weights of step 20" in outcome.err
    assert Run(tmp_path / "run").status == "failed"
