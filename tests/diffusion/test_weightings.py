"""Weights are functions of the level alone, however the network says what it predicts, and the bound's is constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from noising.diffusion import weightings
from noising.diffusion.levels import VarianceExploding
from noising.diffusion.loss_weights import LossWeights, loss_weights
from noising.diffusion.objectives import ContinuousBound, Objective, Regression, WeightedBound, Weighting
from noising.diffusion.parameterizations import Epsilon, Flow, Karras, Parameterization, Velocity
from noising.diffusion.schedules import Cosine, LinearLogSNR, LogLinearSigma, RectifiedFlow, Schedule
from noising.diffusion.times import LogitNormal, LogNormal, TimeSampler, Uniform
from noising.diffusion.weightings import edm, min_snr, p2, sigmoid, snr
from tests.diffusion.helpers import PARAMETERIZATIONS, normals
from tests.helpers import public_names

LEVELS = torch.linspace(0.02, 0.98, 7, dtype=torch.float64)
# of snr = α²/σ²: the weight on the squared error of ε̂
ON_NOISE: list[tuple[Weighting, Callable[[Tensor], Tensor]]] = [
    (snr, torch.ones_like),
    (min_snr, lambda ratio: (5 / ratio).clamp(max=1)),
    (partial(min_snr, limit=1.5), lambda ratio: (1.5 / ratio).clamp(max=1)),
    (p2, lambda ratio: 1 / (1 + ratio)),
    (partial(p2, k=2.0, gamma=0.5), lambda ratio: (2 + ratio) ** -0.5),
    (edm, lambda ratio: 1 + 4 / ratio),
    (partial(edm, sigma_data=0.8), lambda ratio: 1 + 1 / (0.64 * ratio)),
    (sigmoid, lambda ratio: 1 / (1 + ratio * math.exp(-2))),
    (partial(sigmoid, bias=-1.0), lambda ratio: 1 / (1 + ratio * math.e)),
]


def named(case: tuple[Weighting, Callable[[Tensor], Tensor]]) -> str:
    weighting = case[0]
    if isinstance(weighting, partial):
        return weighting.func.__name__ + str(weighting.keywords)
    return getattr(weighting, "__name__", "")


def test_every_weighting_is_tested() -> None:
    """The uniform one, which is no function of the level on ε̂, beside the parameterizations."""
    assert {named(case).split("{")[0] for case in ON_NOISE} | {"uniform"} == public_names(weightings)


@pytest.mark.parametrize("case", ON_NOISE, ids=named)
def test_weighted_error_is_the_papers_on_the_noise(
    case: tuple[Weighting, Callable[[Tensor], Tensor]], schedule: Schedule
) -> None:
    """By the errors themselves: w (target − output)² = w_ε (ε − ε̂)² for any output, to 1e-7."""
    weighting, on_noise = case
    level = schedule(LEVELS)
    x, noise, output = (normals(7, 1, 2, 2, seed=seed) for seed in range(3))
    for kind in PARAMETERIZATIONS:
        weight = weighting(level, kind().gain(level))
        _, predicted = kind().solve(output, level.perturb(x, noise), level)
        ours = weight * (kind().target(x, noise, level) - output) ** 2
        expected = on_noise(level.log_snr.exp()) * (noise - predicted) ** 2
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 2.0])
def test_edm_weight_is_one_on_karras_at_every_level(sigma_data: float) -> None:
    level = LogLinearSigma()(torch.linspace(0, 1, 101, dtype=torch.float64))
    weight = edm(level, Karras(sigma_data).gain(level), sigma_data=sigma_data)
    torch.testing.assert_close(weight, torch.ones_like(weight), rtol=0, atol=1e-12)


INSIDE = (torch.arange(4000, dtype=torch.float64) + 0.4142) / 4000


def test_bounds_weigh_every_schedule_alike(schedule: Schedule) -> None:
    """1/ln 2 for the bound in bits, sigmoid(2 − λ) for the bound of noised data; to 1e-7."""
    for kind in PARAMETERIZATIONS:
        bound, noised = (
            loss_weights(schedule, kind(), Uniform(), objective, INSIDE)
            for objective in (ContinuousBound(), WeightedBound(sigmoid))
        )
        torch.testing.assert_close(bound.weight, torch.full_like(bound.weight, 1 / math.log(2)), rtol=1e-7, atol=0)
        expected = 1 / (1 + torch.exp(noised.log_snr - 2))
        torch.testing.assert_close(noised.weight, expected, rtol=1e-7, atol=0)


def test_density_of_levels_is_that_of_the_times(schedule: Schedule) -> None:
    """∫ p(λ) dλ between two levels is the time between them, 1e-3 of it; over all of it, 1."""
    found = loss_weights(schedule, Karras(), Uniform(), Regression(weightings.uniform), INSIDE)
    steps = -(found.density[1:] + found.density[:-1]) / 2 * found.log_snr.diff()
    assert float(steps.sum()) == pytest.approx(1, abs=2e-3)
    quarters = steps[: 4 * (len(steps) // 4)].reshape(4, -1).sum(1)
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=1e-3)


# w(λ) of the published losses: Kingma & Gao (2023), table 1, up to a factor


T = (torch.arange(4000, dtype=torch.float64) + 0.4142) / 4000
SMOOTH = Cosine(200_000, offset=0, max_beta=0.9999)  # as good as the untabulated one
SIMPLE = Regression(weightings.uniform)


def curves(
    schedule: Schedule, parameterization: Parameterization, times: TimeSampler, objective: Objective
) -> LossWeights:
    return loss_weights(schedule, parameterization, times, objective, T)


ROWS: list[tuple[str, Schedule, Parameterization, TimeSampler, Objective, Callable[[Tensor], Tensor]]] = [
    ("ε, cosine", SMOOTH, Epsilon(), Uniform(), SIMPLE, lambda v: 1 / torch.cosh(v / 2)),
    ("v, cosine", SMOOTH, Velocity(), Uniform(), SIMPLE, lambda v: torch.exp(-v / 2)),
    (
        "min-SNR, cosine",
        SMOOTH,
        Velocity(),
        Uniform(),
        Regression(weightings.min_snr),
        lambda v: (5 * torch.exp(-v)).clamp(max=1) / torch.cosh(v / 2),
    ),
    (
        "P2, cosine",
        SMOOTH,
        Epsilon(),
        Uniform(),
        Regression(weightings.p2),
        lambda v: 1 / (torch.cosh(v / 2) * (1 + v.exp())),
    ),
    ("flow", RectifiedFlow(), Flow(), Uniform(), SIMPLE, lambda v: torch.exp(-v / 2)),
    (
        "EDM",
        LogLinearSigma(),
        Karras(0.5),
        LogNormal(-1.2, 1.2),
        SIMPLE,
        lambda v: torch.exp(-0.5 * ((v - 2.4) / 2.4) ** 2) * (torch.exp(-v) + 0.25),
    ),
    ("linear λ", LinearLogSNR(), Epsilon(), Uniform(), SIMPLE, torch.ones_like),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_published_weights(row) -> None:  # type: ignore[no-untyped-def]
    _, schedule, parameterization, times, objective, expected = row
    found = curves(schedule, parameterization, times, objective)
    inside = (found.log_snr > -7) & (found.log_snr < 9)
    ratio = (found.weight / expected(found.log_snr))[inside]
    assert inside.sum() > 1000
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=2e-3, atol=0)


@pytest.mark.parametrize("schedule", [Cosine(1000), LogLinearSigma(), RectifiedFlow(), LinearLogSNR()])
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_bound_weighs_every_level_alike(schedule: Schedule, kind: type[Parameterization]) -> None:
    weight = curves(schedule, kind(), Uniform(), ContinuousBound()).weight
    torch.testing.assert_close(weight, torch.full_like(weight, 1 / math.log(2)), rtol=1e-9, atol=0)  # in bits


@pytest.mark.parametrize(
    "schedule", [Cosine(1000), LogLinearSigma(), RectifiedFlow(), Cosine(1000, geometry=VarianceExploding())]
)
@pytest.mark.parametrize("kind", [Velocity, Karras])
def test_weighted_bound_is_its_weighting_whatever_the_schedule(
    schedule: Schedule, kind: type[Parameterization]
) -> None:
    found = curves(schedule, kind(), Uniform(), WeightedBound(weightings.sigmoid))
    torch.testing.assert_close(found.weight, torch.sigmoid(2 - found.log_snr), rtol=1e-9, atol=0)


@pytest.mark.parametrize("times", [Uniform(), LogNormal(), LogitNormal()], ids=lambda times: type(times).__name__)
def test_density_of_levels_integrates_to_one(times: TimeSampler) -> None:
    found = curves(LogLinearSigma(), Karras(), times, SIMPLE)
    assert float(-torch.trapezoid(found.density, found.log_snr)) == pytest.approx(1, abs=1e-3)
