"""Bounds that are equalities: with the optimal denoiser of known data, each term of the theory has a truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm

from noising.diffusion.levels import Geometry, Straight, VarianceExploding, VariancePreserving
from noising.diffusion.likelihood.decoders import SoftmaxGaussian
from noising.diffusion.likelihood.terms import ModelTerms
from noising.diffusion.parameterizations import CleanImage, Epsilon, Flow, Karras, Parameterization, Score, Velocity
from noising.diffusion.schedules import (
    Cosine,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    RectifiedFlow,
    ResolutionShift,
    ScaledLinearBeta,
    Schedule,
    SigmoidAlphaBar,
    SigmoidBeta,
    ZeroTerminalSNR,
)
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, Optimal, ReverseVariance
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian, grey_levels
from noising.verification.gaussian_data import expected_bound

PARAMETERIZATIONS = [Epsilon(), CleanImage(), Velocity(), Score(), Flow(), Karras()]
GEOMETRIES = [VariancePreserving(), VarianceExploding(), Straight()]
OTHERS = [
    ScaledLinearBeta(1000),
    SigmoidBeta(1000),
    SigmoidAlphaBar(),
    LinearLogSNR(),
    LogLinearSigma(),
    RectifiedFlow(),
    ZeroTerminalSNR(LinearBeta(1000)),
    ResolutionShift(Cosine(1000), 32),
]


def name(part: object) -> str:
    return type(part).__name__


def truth(chain: Chain, std: float) -> float:
    """Entropy + KL(q(x_T) of the aggregate ‖ p(x_T)), bits/dim."""
    end = chain.level(len(chain))
    ratio = float(end.alpha**2 * std**2 + end.sigma**2) / chain.schedule.prior_std**2
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    return (entropy + 0.5 * (ratio - 1 - math.log(ratio))) / math.log(2)


def bound(
    chain: Chain, parameterization: Parameterization, variance: ReverseVariance | None, std: float = 0.5
) -> float:
    oracle = gaussian(std)
    variance = variance or Optimal(error=oracle.error)
    return expected_bound(oracle_denoiser(oracle, chain.schedule, parameterization, variance), chain, std).total


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=name)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=name)
@pytest.mark.parametrize("make", [LinearBeta, Cosine], ids=["linear", "cosine"])
def test_bound_is_the_entropy_and_the_start(
    make: Callable[..., Schedule], geometry: Geometry, parameterization: Parameterization
) -> None:
    chain = Chain.uniform(make(1000, geometry=geometry), 1000)
    assert bound(chain, parameterization, None) == pytest.approx(truth(chain, 0.5), abs=1e-10)


@pytest.mark.parametrize("schedule", OTHERS, ids=name)
def test_on_every_schedule(schedule: Schedule) -> None:
    for timesteps in (10, 1000):
        chain = Chain.uniform(schedule, timesteps)
        assert bound(chain, Velocity(), None) == pytest.approx(truth(chain, 0.5), abs=1e-10)


@pytest.mark.parametrize(
    ("schedule", "std", "variance", "gap"),
    [
        (LinearBeta(1000), 0.5, FixedLarge(), 0.1654),
        (LinearBeta(1000), 1.0, FixedLarge(), 0.1640),
        (Cosine(1000), 0.5, FixedLarge(), 0.1852),
        (Cosine(4000), 0.5, FixedLarge(), 0.2109),
        (LinearBeta(1000), 0.5, FixedSmall(), 1.86932 - 1.04710),
        (LinearBeta(1000), 1.0, FixedSmall(), 2.88183 - 2.04710),
        (Cosine(1000), 0.5, FixedSmall(), 1.81171 - 1.04710),
        (Cosine(4000), 0.5, FixedSmall(), 1.73064 - 1.04710),
        (LinearBeta(1000, geometry=VarianceExploding()), 0.5, FixedLarge(), 0.2187),
        (LinearBeta(1000, geometry=Straight()), 0.5, FixedLarge(), 0.1777),
    ],
)
def test_published_gaps_of_the_fixed_variances(
    schedule: Schedule, std: float, variance: ReverseVariance, gap: float
) -> None:
    chain = Chain.uniform(schedule, schedule.timesteps)
    measured = bound(chain, Epsilon(), variance, std) - truth(chain, std)
    assert measured == pytest.approx(gap, abs=6e-5 if isinstance(variance, FixedLarge) else 1.5e-5)


def test_sum_of_the_posteriors_meets_the_continuous_bound_at_rate_one_over_t() -> None:
    """½ ∫ mmse d(α²/σ²) between the chain's two ends, which for Gaussian data is a difference of logarithms."""
    schedule, excess = LinearLogSNR(8, -6), []
    limit = 0.5 * (math.log1p(0.25 * math.exp(8)) - math.log1p(0.25 * math.exp(-6))) / math.log(2)
    for steps in (100, 200, 400, 800):
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64).clamp(min=1e-12)
        denoiser = oracle_denoiser(gaussian(0.5), schedule, Epsilon(), FixedSmall())
        excess.append(float(expected_bound(denoiser, Chain(schedule, times)).steps.sum()) - limit)
    ratios = [before / after for before, after in pairwise(excess)]
    assert ratios == pytest.approx([2, 2, 2], rel=0.03)
    assert ratios[-1] == pytest.approx(2, rel=0.01)


def quadrature(nodes: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of E over N(0, 1)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return points, weights / weights.sum()


@pytest.mark.parametrize("t", [0.2, 0.5])
def test_decoder_of_grey_levels_is_the_sum_over_all_values(t: float) -> None:
    """L_0 of equally likely levels with VDM's decoder is H(x_0 | x_1), by Bayes' rule over all 256 values."""
    schedule = LinearLogSNR(14, 2)
    chain = Chain(schedule, torch.tensor([t], dtype=torch.float64))
    levels, (points, weights) = 256, quadrature()
    oracle = grey_levels(torch.full((levels,), 1 / levels, dtype=torch.float64))
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    x = values.repeat_interleave(len(points)).reshape(-1, 1, 1, 1)
    noise = torch.from_numpy(points).repeat(levels).reshape(-1, 1, 1, 1)
    denoiser = oracle_denoiser(oracle, schedule, Epsilon(), FixedSmall())
    terms = ModelTerms(denoiser, chain, SoftmaxGaussian(levels)).at(x, torch.ones(len(x)).long(), noise).nats
    measured = float((terms.reshape(levels, -1) @ torch.from_numpy(weights)).mean())

    level = chain.level(1)
    alpha, sigma = float(level.alpha), float(level.sigma)
    x_1 = alpha * values.numpy()[:, None] + sigma * points  # (value, node)
    joint = norm.pdf(x_1[..., None], alpha * values.numpy(), sigma)
    posterior = np.take_along_axis(joint, np.arange(levels)[:, None, None], 2)[..., 0] / joint.sum(-1)
    assert measured == pytest.approx(float((-np.log(posterior) @ weights).mean()), rel=1e-10)
    assert 0.3 < measured < math.log(levels) - 0.3  # x_1 tells something, and not all


def test_grey_levels_cost_their_entropy_at_infinitely_many_steps() -> None:
    """L_T + ½ ∫ mmse d(α²/σ²) + H(x_0 | x_1) = H(x_0): discrete data has an exact bound in the limit."""
    schedule, levels = LinearLogSNR(9, -9), 16
    oracle = grey_levels(torch.full((levels,), 1 / levels, dtype=torch.float64))
    t = torch.linspace(0, 1, 801, dtype=torch.float64)
    level = schedule(t)
    mmse, snr = oracle.error(level).flatten(), level.log_snr.exp().flatten()
    # the trapezoidal rule in λ: ∫ mmse dSNR = ∫ mmse e^λ dλ
    steps = 0.5 * float(torch.trapezoid(mmse * snr, -level.log_snr.flatten()))
    points, weights = quadrature(200)
    alpha, sigma = float(level.alpha[0]), float(level.sigma[0])
    values = np.linspace(-1, 1, levels)
    x_1 = alpha * values[:, None] + sigma * points
    joint = norm.pdf(x_1[..., None], alpha * values, sigma)
    own = norm.pdf(points, 0, 1) / sigma
    left = float((-np.log(own / joint.sum(-1)) @ weights).mean())
    # the aggregate at t = 1 is still short of the prior by I(x; x_T)
    start = 0.5 * float(mmse[-1] * snr[-1])
    assert steps + left + start == pytest.approx(math.log(levels), abs=2e-4)
