"""What is learned or fitted beside the network: a schedule, a variance, the times; and that a run carries it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import noising as package
from noising.diffusion.variances import Optimal
from noising.training.checkpoints import load_checkpoint
from tests.helpers import SMALL, Command, run_script, same


def checkpoint(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")


def test_optimal_variance_is_fitted_to_the_averaged_weights_and_stored(noising: Command, tmp_path: Path) -> None:
    # the last step is neither a checkpoint's nor a validation's: the fit must still be in the file
    outcome = noising("train", *SMALL, "experiment=analytic_dpm", "trainer.max_steps=13", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    run = package.load(tmp_path / "run")
    variance = run.denoiser.variance
    assert isinstance(variance, Optimal)
    assert run.step == 13
    x = run.data.scale(run.data.train.pixels[:128])
    level = run.denoiser.schedule(torch.tensor([0.5], dtype=torch.float64))
    errors = []
    with torch.no_grad():
        for seed in range(20):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            errors.append((run.denoiser.at(level.perturb(x, noise), level, clip=1.0).x - x).square().mean())
    measured = torch.stack(errors)
    # the fit is of one noise at each of two levels
    assert float(variance.error(level)) == pytest.approx(float(measured.mean()), abs=4 * float(measured.std()))


@pytest.mark.parametrize(
    "recipe",
    [
        ["experiment=vdm", "model.dropout=0.1"],
        ["experiment=analytic_dpm"],
    ],
    ids=["learned schedule", "optimal variance"],
)
def test_resumed_is_bitwise_the_uninterrupted(
    recipe: list[str], noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noising.training.module import DiffusionModule

    small = [*SMALL, *recipe]
    assert noising("train", *small, "hydra.run.dir=whole").code == 0
    step = DiffusionModule.training_step

    def stop(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 13:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", stop)
        noising("train", *small, "hydra.run.dir=stopped")
    assert noising("train", *small, "resume=stopped").code == 0
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "stopped")
    for part in ("state_dict", "times", "ema"):
        same(whole[part], resumed[part], part)


def test_loss_aware_times_have_heard_every_loss(noising: Command, tmp_path: Path) -> None:
    recipe = ["experiment=iddpm", "times=loss_aware", "timesteps=20"]
    assert noising("train", *SMALL, *recipe, "hydra.run.dir=run").code == 0
    heard = checkpoint(tmp_path / "run")["times"]["seen"]
    assert int(heard.sum()) == 20 * 128  # steps times images
    assert int(heard.min()) >= 10


def test_learned_schedule_moves_and_keeps_its_ends(noising: Command, tmp_path: Path) -> None:
    assert noising("train", *SMALL, "experiment=vdm", "hydra.run.dir=run").code == 0
    schedule = package.load(tmp_path / "run").denoiser.schedule
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    with torch.no_grad():
        log_snr = schedule.log_snr(t)
    assert log_snr[[0, -1]].tolist() == pytest.approx([7.7, -5.0], abs=1e-12)
    assert float((log_snr - (7.7 - 12.7 * t)).abs().max()) > 0.05


@pytest.mark.slow
def test_two_ranks_share_one_history(tmp_path: Path) -> None:
    options = [*SMALL, "experiment=iddpm", "times=loss_aware", "timesteps=20", "trainer.devices=2", "hydra.run.dir=run"]
    outcome = run_script("train.py", tmp_path, *options)
    assert outcome.code == 0, outcome.err
    heard = checkpoint(tmp_path / "run")["times"]["seen"]
    assert int(heard.sum()) == 20 * 128
