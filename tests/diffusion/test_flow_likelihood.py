"""The flow's likelihood is the density of the noised data, to the order of its steps, on every geometry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noising.diffusion.flow_likelihood import ExactDivergence, HutchinsonDivergence, flow_log_prob
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.schedules import LogLinearSigma, RectifiedFlow, Schedule
from noising.diffusion.tabulated_schedules import Cosine
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import Oracle, oracle_denoiser
from noising.oracles.pixels import PixelMixture, gaussian
from tests.diffusion.conftest import normals

# without signal at the end, or with noise that drowns it: the flow starts from the data's own q(x_T)
SCHEDULES = [RectifiedFlow(), Cosine(1000), LogLinearSigma(0.01, 1e4)]


def mixture() -> PixelMixture:
    weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, 0.6], [-0.5, 0.6], [0.2, 0.3]))
    return PixelMixture(weights, means, stds)


def times(schedule: Schedule, steps: int, start: float = 0.01) -> Tensor:
    """Even in the angle, from the level of σ/α = start."""
    first = math.atan(start)
    last = math.atan(math.exp(-float(schedule.log_snr(torch.ones((), dtype=torch.float64))) / 2))
    angles = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    inside = schedule.time(-2 * angles[:-1].tan().log())
    return torch.cat([inside, torch.ones(1, dtype=torch.float64)])


def log_density(oracle: PixelMixture, schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
    """log q(x_t) of independent pixels, (B,) nats."""
    level = schedule(t[:1])
    variance = level.alpha**2 * oracle.stds**2 + level.sigma**2
    off = x[..., None] - level.alpha * oracle.means
    parts = oracle.weights.log() - 0.5 * (off**2 / variance + variance.log() + math.log(2 * math.pi))
    return torch.logsumexp(parts, -1).flatten(1).sum(1)


def flow(oracle: Oracle, schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
    denoiser = oracle_denoiser(oracle, schedule, Velocity(), FixedSmall())
    return flow_log_prob(denoiser, x, t, ExactDivergence())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("oracle", [gaussian(0.5, 0.1), mixture()], ids=["gaussian", "mixture"])
def test_likelihood_is_the_exact_log_density(oracle: PixelMixture, schedule: Schedule) -> None:
    x, t = 0.6 * normals(4, 1, 1, 2), times(schedule, 60)
    tolerance = 2e-5 if isinstance(schedule, RectifiedFlow) else 2e-4  # what is left of the data at t = 1
    torch.testing.assert_close(
        flow(oracle, schedule, t, x), log_density(oracle, schedule, t, x), rtol=0, atol=tolerance
    )


def test_error_is_of_fourth_order() -> None:
    schedule, x = RectifiedFlow(), 0.6 * normals(4, 1, 1, 2)
    errors = []
    for steps in (8, 16, 32):
        t = times(schedule, steps, start=0.3)
        errors.append(float((flow(mixture(), schedule, t, x) - log_density(mixture(), schedule, t, x)).abs().max()))
    assert errors[0] / errors[1] > 10  # 16 in the limit
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.35)


def test_hutchinson_is_exact_on_average_over_signs() -> None:
    """Over all four sign vectors of two pixels the estimate's mean is the trace itself."""
    schedule, x = RectifiedFlow(), 0.6 * normals(3, 1, 1, 2)
    t = times(schedule, 10, start=0.1)
    denoiser = oracle_denoiser(mixture(), schedule, Velocity(), FixedSmall())
    signs = [torch.tensor([a, b], dtype=torch.float64).expand(3, 1, 1, 2) for a in (1.0, -1.0) for b in (1.0, -1.0)]
    estimates = [flow_log_prob(denoiser, x, t, HutchinsonDivergence(sign)) for sign in signs]
    exact = flow_log_prob(denoiser, x, t, ExactDivergence())
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=1e-10, atol=1e-10)
