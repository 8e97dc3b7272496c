"""`latents` on a trained run: its pictures, its numbers made again, who is told which class, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from noising.diffusion.grids import leading
from noising.diffusion.inversion import interpolate, invert
from noising.diffusion.samplers import DDIM
from noising.experiment import Experiment
from noising.randomness import Streams
from noising.trained import TrainedRun, load
from tests.helpers import Command

QUICK = ("device=cpu", "pairs=2", "between=2", "images=3", "steps=[5,3]", "hydra.run.dir=out")
PICTURES = ("interpolation.png", "reconstruction.png", "reconstruction_error.png")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pictures are given."""
    given: dict[str, Any] = {}

    def note(name: str, *arguments: Any) -> None:
        given[name] = arguments

    for name in ("interpolation_rows", "reconstruction_rows"):
        monkeypatch.setattr(f"noising.commands.latents.{name}", partial(note, name))
    return given


def by_hand(run: TrainedRun, steps: int) -> tuple[DDIM, Tensor, Tensor]:
    """The sampler, and three test images spread over the set with their classes."""
    pixels, labels = run.data.test
    assert labels is not None
    spread = torch.arange(3) * len(pixels) // 3
    return DDIM(steps, partial(leading, timesteps=1000), None), run.data.scale(pixels[spread]), labels[spread]


@torch.no_grad()
def test_pictures_and_numbers(noising: Command, tmp_path: Path, trained: Path) -> None:
    outcome = noising("latents", f"checkpoint={trained}", *QUICK)
    assert outcome.code == 0, outcome.err
    for name in PICTURES:
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 300
        assert f"out/{name}" in outcome.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "finished"
    run = load(trained)
    for steps in (3, 5):
        sampler, x, _ = by_hand(run, steps)
        noise = invert(run.denoiser, sampler.chain(run.denoiser.schedule), x)
        back = sampler(run.denoiser, lambda: noise).clamp(-1, 1)  # noqa: B023
        rmse = 127.5 * (back - x).square().mean().sqrt().item()
        measured = summary[f"latents/reconstruction_rmse_{steps}_steps"]
        assert measured == pytest.approx(rmse, rel=1e-4)
        assert f"{measured:.4f}" in outcome.out
    assert summary["latents/reconstruction_rmse"] == summary["latents/reconstruction_rmse_5_steps"]
    assert summary["latents/inverted_std"] == pytest.approx(noise.square().mean().sqrt().item(), rel=1e-4)
    card = summary["cards"]["latents/reconstruction_rmse"]
    expected = {"split": "test", "images": 3, "steps": 5, "step": 20, "classes": 0, "clip_of_inversion": None}
    assert {name: card[name] for name in expected} == expected
    assert card["unit"].startswith("8-bit grey levels")
    assert card["grid"]["_target_"].endswith("leading")


@torch.no_grad()
def test_a_pair_is_its_own_whatever_the_others(noising: Command, trained: Path, drawn: dict[str, Any]) -> None:
    assert noising("latents", f"checkpoint={trained}", *QUICK, "steps=[5]", "clip=1").code == 0
    _, images, names, _ = drawn["interpolation_rows"]
    assert names == ["pair 0", "pair 1"]
    run = load(trained)
    a, b = Streams(0, "latent", [2, 3]).normal((1, 8, 8))[:, None]  # of pair 1 alone
    latents = torch.cat([interpolate(a, b, column / 3) for column in range(4)])
    expected = DDIM(5, partial(leading, timesteps=1000), 1.0)(run.denoiser, lambda: latents)
    shown = run.data.to_8bit(run.data.unscale(expected))
    assert (images[1].int() - shown.int()).abs().max() <= 16  # a level of the digits, where rounding tips over
    assert (images[1] != shown).float().mean() < 0.01


def test_classes_and_guidance_reach_the_network(
    noising: Command, tmp_path: Path, trained: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair is told one class, a test image its own; the guide, which comes second, none."""
    run = load(trained)
    run.config.label_dropout = 0.1
    denoiser = Experiment(run.config, run.data).denoiser
    state = {f"denoiser.{name}": value for name, value in denoiser.state_dict().items()}
    weights = {name: value.detach() for name, value in denoiser.named_parameters()}
    untrained = {"state_dict": state, "ema": {"weights": weights, "decay": 0.0, "updates": 0}}
    run = TrainedRun(run.path, run.config, 0, untrained)
    told: list[list[int] | None] = []

    def note(module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        label = options.get("class_label")
        told.append(None if label is None else label.tolist())

    run.denoiser.model.register_forward_pre_hook(note, with_kwargs=True)
    monkeypatch.setattr("noising.commands.latents.load", lambda checkpoint: run)
    outcome = noising("latents", f"checkpoint={trained}", *QUICK, "steps=[2]", "guidance=classifier_free")
    assert outcome.code == 0, outcome.err
    own = by_hand(run, 2)[2].tolist()
    assert told[0::2] == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2 + [own] * 4
    assert told[1::2] == [[10] * 8] * 2 + [[10] * len(own)] * 4  # the label of no class
    assert drawn["interpolation_rows"][2] == ["pair 0, class 0", "pair 1, class 1"]
    card = json.loads((tmp_path / "out" / "summary.json").read_text())["cards"]["latents/reconstruction_rmse"]
    assert card["guidance"]["scale"] == 2
    assert card["classes"] == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pairs=0", "pairs must be a whole number from 1, got 0"),
        ("images=9999", "images must be a whole number from 1 to "),
        ("steps=1", "steps must be a list of whole numbers from 2, as [10,50], got 1"),
        ("steps=[1,10]", "steps must be a list of whole numbers from 2, as [10,50], got [1, 10]"),
        ("steps=[2000]", "grid: steps=2000 is more than the 1000 whole steps of the chain"),
        ("clip=nan", "clip must be a positive number or null, got nan"),
        ("clip=true", "clip must be a positive number or null, got True"),
        ("guidance=classifier_free", "guidance=classifier_free needs a model that was trained with and"),
    ],
)
def test_bad_input_is_one_line(noising: Command, tmp_path: Path, trained: Path, override: str, message: str) -> None:
    outcome = noising("latents", f"checkpoint={trained}", override)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}"), outcome.err
    assert outcome.err.count("\n") == 1
    assert not any(tmp_path.iterdir())
