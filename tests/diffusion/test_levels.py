"""Geometries are lines in the (α, σ) plane, and the two ends of a schedule are what it says they are."""

from __future__ import annotations

import math

import pytest
import torch

from noising.diffusion.levels import Geometry, Straight, VarianceExploding, VariancePreserving, cast_to
from noising.diffusion.objectives import ContinuousBound, Objective, WeightedBound
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.weightings import sigmoid
from tests.diffusion.helpers import PARAMETERIZATIONS, SCHEDULES, final_classes, normals

GEOMETRIES: list[Geometry] = [VariancePreserving(), VariancePreserving(0.9), VarianceExploding(), Straight()]
STARTS = {
    "linear_log_snr": 13.3,
    "grey_levels": 2 * math.log(48),
    "learned": 13.3,
    "log_linear_sigma": -2 * math.log(0.002),
}
STARTS["learned_line"] = torch.tensor(13.3).item() + 2 * math.log(255 / 256)  # a parameter in float32
"""λ(0) of the schedules that never are clean; that of all others is +∞."""
ENDS_IN_NOISE = ("rectified_flow", "zero_terminal")


def test_every_final_class_is_tested() -> None:
    assert final_classes(Geometry) == {type(geometry) for geometry in GEOMETRIES}


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: type(geometry).__name__)
def test_every_log_snr_is_on_the_line_and_nothing_else_is(geometry: Geometry) -> None:
    log_snr = torch.linspace(-30, 30, 241, dtype=torch.float64)
    alpha, sigma = geometry.scales(log_snr)
    one = torch.ones_like(alpha)
    torch.testing.assert_close(geometry.measure(alpha, sigma), one, rtol=0, atol=1e-12)
    torch.testing.assert_close((alpha / sigma) ** 2, log_snr.exp(), rtol=1e-12, atol=0)
    grown = geometry.measure(1.1 * alpha, 1.1 * sigma)  # the same λ, off the line
    assert bool((grown > 1.09).all())


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: type(geometry).__name__)
def test_infinite_log_snr_is_the_image_or_the_noise(geometry: Geometry) -> None:
    alpha, sigma = geometry.scales(torch.tensor([torch.inf, -torch.inf], dtype=torch.float64))
    noise = (1.0, torch.inf) if isinstance(geometry, VarianceExploding) else (0.0, 1.0)
    image = getattr(geometry, "image_scale", 1.0)
    assert list(zip(alpha.tolist(), sigma.tolist(), strict=True)) == [(image, 0.0), noise]


def test_perturb_mixes_each_image_at_its_own_level(schedule: Schedule) -> None:
    x, noise = normals(3, 1, 2, 2), normals(3, 1, 2, 2, seed=1)
    level = schedule(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64))
    for i, x_t in enumerate(level.perturb(x, noise)):
        expected = level.alpha[i].item() * x[i] + level.sigma[i].item() * noise[i]
        torch.testing.assert_close(x_t, expected, rtol=1e-14, atol=1e-14)


def test_an_image_keeps_its_type_and_a_scalar_needs_no_cast(schedule: Schedule) -> None:
    x, noise = normals(2, 1, 2, 2).float(), normals(2, 1, 2, 2, seed=1).float()
    for t in (torch.tensor(0.5), torch.tensor([0.2, 0.9])):
        assert schedule(t).perturb(x, noise).dtype == torch.float32
    alpha = schedule(torch.tensor(0.5)).alpha
    assert cast_to(alpha, x) is alpha


def test_the_prior_is_as_wide_as_the_last_noise() -> None:
    """Unit variance, but σ_T where noise is only added; only there does λ(1) matter."""
    for geometry in GEOMETRIES:
        expected = 80.0 if isinstance(geometry, VarianceExploding) else 1.0
        end = torch.tensor(-2 * math.log(80), dtype=torch.float64)
        assert geometry.prior_std(end) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_are_as_declared(name: str) -> None:
    """The start exactly; the end exactly where it is nothing but noise, otherwise some signal is left."""
    level = SCHEDULES[name](torch.tensor([0.0, 1.0]))
    (start, end), (clean, _), (_, noise) = (v.flatten().tolist() for v in (level.log_snr, level.sigma, level.alpha))
    assert start == pytest.approx(STARTS.get(name, math.inf), rel=1e-14)
    assert (clean == 0) == (name not in STARTS)
    assert (end == -math.inf, noise == 0) == (name in ENDS_IN_NOISE,) * 2


@pytest.mark.parametrize("timesteps", [1, 2, 50])
def test_chain_starts_at_the_clean_image_whatever_the_schedule(schedule: Schedule, timesteps: int) -> None:
    """Exactly: level 0 is x, and the first step's posterior mean is x̂ even where λ(0) is finite."""
    chain = Chain.uniform(schedule, timesteps)
    clean = chain.level(0)
    assert [float(v) for v in clean] == [0.0, math.inf, 1.0, 0.0]
    x_1, x = normals(2, 1, 2, 2), normals(2, 1, 2, 2, seed=1)
    assert torch.equal(chain[1].mean(x_1, x), x)
    for step in (1, timesteps):
        expected = schedule(torch.tensor(step / timesteps, dtype=torch.float64))
        assert [v.item() for v in chain.level(step)] == pytest.approx([v.item() for v in expected], rel=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("objective", [ContinuousBound(), WeightedBound(sigmoid)], ids=lambda o: type(o).__name__)
def test_weight_at_the_last_time_is_its_limit(objective: Objective, name: str) -> None:
    """t = 1 is drawn by `Grid`: the bound's weight is there what it is 1e-12 before, to 1e-6 of it or of 1."""
    schedule = SCHEDULES[name]
    t = torch.tensor([1.0, 1 - 1e-12], dtype=torch.float64)

    def weights(kind: type[Parameterization]) -> list[float]:
        level = schedule(t)
        weight: list[float] = objective.weight(schedule, level, kind().gain(level)).flatten().tolist()
        return weight

    # with nothing but noise, ε and the score have no gain: what they predict has no weight that is a number
    kinds = [kind for kind in PARAMETERIZATIONS if kind.__name__ not in ("Epsilon", "Score")]
    for kind in kinds if name in ENDS_IN_NOISE else PARAMETERIZATIONS:
        last, before = weights(kind)
        assert last == pytest.approx(before, rel=1e-6, abs=1e-6)
