"""w(λ) of the published losses: Kingma & Gao (2023), table 1, up to a factor."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from noising.diffusion import weightings
from noising.diffusion.levels import VarianceExploding
from noising.diffusion.objectives import ContinuousBound, Objective, Regression, WeightedBound
from noising.diffusion.parameterizations import Epsilon, Flow, Karras, Parameterization, Velocity
from noising.diffusion.schedules import Cosine, LinearLogSNR, LogLinearSigma, RectifiedFlow, Schedule
from noising.diffusion.times import LogitNormal, LogNormal, TimeSampler, Uniform
from noising.diffusion.weightings import LossWeights, loss_weights
from tests.diffusion.conftest import PARAMETERIZATIONS

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
