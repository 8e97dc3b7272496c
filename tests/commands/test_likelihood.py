"""`likelihood` on a trained run: what it writes and prints, that batches do not matter, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from noising.diffusion.likelihood.dequantization import FlowLikelihood, offset_bits
from noising.diffusion.likelihood.divergences import Rademacher
from noising.diffusion.likelihood.solvers import RungeKutta4
from noising.experiment import Experiment
from noising.randomness import Streams
from noising.trained import load
from tests.helpers import CONF, Command, composed

QUICK = ("device=cpu", "images=6", "solver=runge_kutta4", "solver.steps=3", "start_time=0.05")


def measured(noising: Command, tmp_path: Path, trained: Path, folder: str, *overrides: str) -> dict[str, Any]:
    outcome = noising("likelihood", f"checkpoint={trained}", *QUICK, f"hydra.run.dir={folder}", *overrides)
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / folder / "summary.json").read_text())
    return {**summary, "printed": outcome.out}


def test_summary_says_the_number_its_errors_and_all_it_depends_on(
    noising: Command, tmp_path: Path, trained: Path
) -> None:
    summary = measured(noising, tmp_path, trained, "out")
    value, mc_se, image_se = (summary[f"test/flow_nll{suffix}"] for suffix in ("", "_mc_se", "_image_se"))
    card = summary["cards"]["test/flow_nll"]
    assert summary["status"] == "finished"
    assert mc_se > 0
    assert image_se >= 0
    half = 2.570582 * math.hypot(mc_se, image_se)  # Student's t of 5 degrees of freedom
    assert card["interval_95"] == pytest.approx([value - half, value + half])
    expected = {
        "unit": "bits/dim",
        "data": "digits",
        "split": "test",
        "images": 6,
        "replicates": 2,
        "grey_levels": 17,
        "step": 20,
        "divergence": {"_target_": "noising.diffusion.likelihood.divergences.Rademacher"},
        "evaluations_per_image": 24,
        "backward_passes_per_evaluation": 1,
        "dequantization": "uniform",
        "start_time": 0.05,
        "timesteps": 1000,
        "clip": None,
        "precision": "float32, log-volume in float64",
    }
    assert {name: card[name] for name in expected} == expected
    assert card["offset"] == pytest.approx(offset_bits(17)) == 3
    assert card["solver"]["steps"] == 3
    assert set(card["weights"]) == {"decay", "updates"}
    assert card["checkpoint"].endswith("last.ckpt")
    for words in (
        "digits test set, 6 images",
        f"{value:.4f}",
        f"{mc_se:.4f}",
        "95% interval",
        "24 network evaluations",
    ):
        assert words in summary["printed"]


def test_an_image_has_its_number_in_any_batch(noising: Command, tmp_path: Path, trained: Path) -> None:
    """The draws are the image's own; with fixed steps only rounding is left of the batch."""
    whole, parts = (measured(noising, tmp_path, trained, f"b{size}", f"batch_size={size}") for size in (64, 4))
    for suffix, tolerance in (("", 1e-5), ("_mc_se", 1e-3), ("_image_se", 1e-3)):
        name = f"test/flow_nll{suffix}"
        assert parts[name] == pytest.approx(whole[name], rel=tolerance)


def test_draws_are_keyed_by_image_and_use_on_images_spread_over_the_set(
    noising: Command, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[int]] = {}

    def recorded(seed: int, purpose: str, indices: list[int], device: torch.device) -> Streams:
        made.setdefault(purpose, []).extend(indices)
        return Streams(seed, purpose, indices, device)

    monkeypatch.setattr("noising.commands.likelihood.Streams", recorded)
    measured(noising, tmp_path, trained, "out", "images=4", "batch_size=3", "solver.steps=1")
    count = len(load(trained).data.test.pixels)
    assert len(made) == 2  # the place in the cell and the probe share no numbers
    assert list(made.values()) == [[i * count // 4 for i in range(4)]] * 2


def test_probes_agree_with_the_exact_divergence(noising: Command, tmp_path: Path, trained: Path) -> None:
    """u is the same for all three, so that the probes' error alone is between them."""
    exact, *probed = (
        measured(noising, tmp_path, trained, name, f"divergence={name}", "solver.steps=1", "images=4")
        for name in ("exact", "rademacher", "gaussian")
    )
    assert exact["cards"]["test/flow_nll"]["backward_passes_per_evaluation"] == 64
    for found in probed:
        assert found["test/flow_nll"] != exact["test/flow_nll"]
        assert abs(found["test/flow_nll"] - exact["test/flow_nll"]) < 4 * found["test/flow_nll_mc_se"]


def test_adaptive_steps_start_at_the_chains_first_step(noising: Command, tmp_path: Path, trained: Path) -> None:
    adaptive = ("solver=dormand_prince", "solver.rtol=0.1", "solver.atol=0.1", "start_time=null", "images=2")
    outcome = noising("likelihood", f"checkpoint={trained}", "device=cpu", "hydra.run.dir=out", *adaptive)
    assert outcome.code == 0, outcome.err
    card = json.loads((tmp_path / "out" / "summary.json").read_text())["cards"]["test/flow_nll"]
    assert card["start_time"] == 0.001
    assert card["solver"]["rtol"] == 0.1
    assert card["evaluations_per_image"] >= 2 * 8


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_family_has_a_likelihood(experiment: str) -> None:
    cfg = composed(f"experiment={experiment}", "data=digits", "~augmentation")
    cfg.model = composed().model
    data = Experiment(cfg).data
    denoiser = Experiment(cfg, data).denoiser.eval()
    with torch.no_grad():
        for parameter in denoiser.model.parameters():  # the last layer starts at zero: nothing to differentiate
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    flow = FlowLikelihood(RungeKutta4(2), Rademacher(), 1 / cfg.timesteps)
    places, probes = (Streams(0, use, range(3)) for use in ("places", "probes"))
    found = flow(denoiser, data.scale(data.test.pixels[:3]), data.levels, places, probes)
    assert found.bits.shape == (3, 2)
    assert found.bits.isfinite().all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("images=1000", "images=1000 is more than the "),
        ("images=1", "images must be a whole number from 2, got 1"),
        ("replicates=1", "replicates must be a whole number from 2, got 1"),
        ("start_time=0", "start_time must be between 0 and 1, got 0: null is 1/timesteps"),
        ("start_time=soon", "start_time=soon: expected a number or null"),
        ("clip=true", "clip=True: expected a number or null"),
        ("clip=0", "clip must be positive or null, got 0"),
        ("solver=runge_kutta4 solver.steps=0", "solver: steps must be at least 1, got 0"),
        ("solver.rtol=0", "solver: rtol and atol must be positive, got 0"),
        ("device=abacus", "device=abacus: "),
        ("checkpoint=nowhere", "checkpoint=nowhere: no run's folder or checkpoint file there"),
    ],
)
def test_bad_input_is_one_line(noising: Command, tmp_path: Path, trained: Path, override: str, message: str) -> None:
    outcome = noising("likelihood", f"checkpoint={trained}", *override.split())
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}"), outcome.err
    assert outcome.err.count("\n") == 1
    assert not any(tmp_path.iterdir())
