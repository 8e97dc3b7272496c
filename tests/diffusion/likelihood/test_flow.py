"""The flow's likelihood is the density of the noised data, to the order of its steps, on every geometry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noising.diffusion.likelihood.divergences import Divergence, Exact, Gaussian, Rademacher, exact_trace, probed_trace
from noising.diffusion.likelihood.flow import FlowLogProb, flow_log_prob, replicated_mean
from noising.diffusion.likelihood.solvers import DormandPrince, RungeKutta4, Solver, even_in_angle, even_in_log_snr
from noising.diffusion.parameterizations import CleanImage, Velocity
from noising.diffusion.schedules import Cosine, LogLinearSigma, RectifiedFlow, Schedule
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import Oracle, oracle_denoiser
from noising.oracles.pixels import PixelMixture, gaussian
from noising.randomness import Streams
from tests.diffusion.helpers import Crooked, denoiser_of, mixture, normals

# without signal at the end, or with noise that drowns it: the flow starts from the data's own q(x_T)
SCHEDULES = [RectifiedFlow(), Cosine(1000), LogLinearSigma(0.01, 1e4)]


def time_of(schedule: Schedule, ratio: float = 0.01) -> float:
    """The time at which σ/α is this."""
    return float(schedule.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)))


def log_density(oracle: PixelMixture, schedule: Schedule, t: float, x: Tensor) -> Tensor:
    """log q(x_t) of independent pixels, (B,) nats."""
    level = schedule(torch.tensor([t], dtype=torch.float64))
    variance = level.alpha**2 * oracle.stds**2 + level.sigma**2
    off = x[..., None] - level.alpha * oracle.means
    parts = oracle.weights.log() - 0.5 * (off**2 / variance + variance.log() + math.log(2 * math.pi))
    return torch.logsumexp(parts, -1).flatten(1).sum(1)


def flow(oracle: Oracle, schedule: Schedule, t: float, x: Tensor, solver: Solver) -> FlowLogProb:
    denoiser = oracle_denoiser(oracle, schedule, Velocity(), FixedSmall())
    return flow_log_prob(denoiser, x, t, solver, exact_trace)


@pytest.mark.parametrize(
    "solver",
    [RungeKutta4(60, even_in_angle), RungeKutta4(100, even_in_log_snr), DormandPrince(1e-6, 1e-6)],
    ids=["even_in_angle", "even_in_log_snr", "adaptive"],
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("oracle", [gaussian(0.5, 0.1), mixture(0.2, 0.3)], ids=["gaussian", "mixture"])
def test_likelihood_is_the_exact_log_density(oracle: PixelMixture, schedule: Schedule, solver: Solver) -> None:
    x, t = 0.6 * normals(4, 1, 1, 2), time_of(schedule)
    tolerance = 5e-5 if isinstance(schedule, RectifiedFlow) else 2e-4  # what is left of the data at t = 1
    found = flow(oracle, schedule, t, x, solver)
    torch.testing.assert_close(found.log_prob, log_density(oracle, schedule, t, x), rtol=0, atol=tolerance)
    assert found.log_prob.dtype == torch.float64


def test_a_narrow_prior_is_in_the_likelihood() -> None:
    """Variance-exploding noise that does not drown the data: the model starts from N(0, σ_T²), not from q(x_T)."""
    schedule, s = LogLinearSigma(0.01, 2.0), 0.5
    x, t = 0.6 * normals(4, 1, 1, 2), time_of(schedule)
    found = flow(gaussian(s), schedule, t, x, RungeKutta4(60)).log_prob
    # the Gaussian flow is linear: x_1 = x √((s² + σ_T²)/(s² + σ_0²))
    stretch = math.sqrt((s**2 + 2.0**2) / (s**2 + 0.01**2))
    square = (stretch * x / 2.0).square().flatten(1).sum(1)
    expected = -0.5 * square - 2 * math.log(2.0 * math.sqrt(2 * math.pi)) + 2 * math.log(stretch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_flow_of_a_clipped_estimate_is_that_of_a_network_that_never_exceeds_it() -> None:
    class Clamped(Crooked):
        def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
            return super().forward(x, noise_label, class_label).clamp(-0.4, 0.4)

    x, solver = 0.9 * normals(3, 1, 2, 2), RungeKutta4(10, even_in_angle)
    clipped, clamped, free = (
        flow_log_prob(denoiser_of(model, Cosine(1000), CleanImage()), x, 0.02, solver, exact_trace, clip).log_prob
        for model, clip in ((Crooked(), 0.4), (Clamped(), None), (Crooked(), None))
    )
    torch.testing.assert_close(clipped, clamped, rtol=1e-12, atol=1e-12)
    assert bool(((clipped - free).abs() > 0.01).all())


def test_error_is_of_fourth_order() -> None:
    schedule, x = RectifiedFlow(), 0.6 * normals(4, 1, 1, 2)
    errors = []
    for steps in (8, 16, 32):
        t = time_of(schedule, 0.3)
        found = flow(mixture(0.2, 0.3), schedule, t, x, RungeKutta4(steps, even_in_angle))
        assert found.evaluations == 4 * steps
        errors.append(float((found.log_prob - log_density(mixture(0.2, 0.3), schedule, t, x)).abs().max()))
    assert errors[0] / errors[1] > 10  # 16 in the limit
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.35)


def test_tolerance_buys_accuracy() -> None:
    schedule, x = Cosine(1000), 0.6 * normals(4, 1, 1, 2)
    t = time_of(schedule, 0.05)
    exact = flow(mixture(0.2, 0.3), schedule, t, x, DormandPrince(1e-9, 1e-9)).log_prob
    for tolerance in (1e-3, 1e-5):
        found = flow(mixture(0.2, 0.3), schedule, t, x, DormandPrince(tolerance, tolerance)).log_prob
        assert float((found - exact).abs().max()) < 20 * tolerance  # two dimensions, some ten steps


def test_hutchinson_is_exact_on_average_over_signs() -> None:
    """Over all four sign vectors of two pixels the estimate's mean is the trace itself."""
    schedule, x = RectifiedFlow(), 0.6 * normals(3, 1, 1, 2)
    denoiser, t = oracle_denoiser(mixture(0.2, 0.3), schedule, Velocity(), FixedSmall()), time_of(schedule, 0.1)
    signs = [torch.tensor([a, b], dtype=torch.float64).expand(3, 1, 1, 2) for a in (1.0, -1.0) for b in (1.0, -1.0)]
    estimates = [flow_log_prob(denoiser, x, t, RungeKutta4(10), probed_trace(sign)).log_prob for sign in signs]
    exact = flow_log_prob(denoiser, x, t, RungeKutta4(10), exact_trace).log_prob
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("divergence", [Rademacher(), Gaussian()], ids=lambda part: type(part).__name__)
def test_drawn_probes_are_unbiased_along_a_flow(divergence: Divergence) -> None:
    schedule, images = RectifiedFlow(), 1000
    denoiser, t = oracle_denoiser(mixture(0.2, 0.3), schedule, Velocity(), FixedSmall()), time_of(schedule, 0.1)
    x = (0.6 * normals(1, 1, 1, 2)).expand(images, 1, 1, 2)
    trace = divergence.prepare(x, Streams(0, "test", range(images)))
    found = flow_log_prob(denoiser, x, t, RungeKutta4(8), trace).log_prob
    exact = flow_log_prob(denoiser, x[:1], t, RungeKutta4(8), Exact().prepare(x[:1], Streams(0, "test", [0]))).log_prob
    error = float(found.std()) / images**0.5
    assert abs(float(found.mean() - exact)) < 4 * error + 1e-10  # independent pixels: signs have no error at all


# Standard errors that split into what the draws and what the images cause


@pytest.mark.parametrize("replicates", [2, 5])
def test_errors_are_those_that_were_put_in(replicates: int) -> None:
    images, between, within = 20_000, 0.3, 0.8
    values = 2 + between * normals(images, 1) + within * normals(images, replicates, seed=1)
    found = replicated_mean(values)
    assert found.mc_se == pytest.approx(within / math.sqrt(replicates * images), rel=0.05)
    assert found.image_se == pytest.approx(between / math.sqrt(images), rel=0.1)
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.mean)
    assert (high - low) / 2 == pytest.approx(1.96 * math.hypot(found.mc_se, found.image_se), rel=1e-4)
    assert low < 2 < high


def test_images_that_do_not_differ_have_no_error() -> None:
    values = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    assert replicated_mean(values) == (1.5, math.sqrt(0.5 / 2 / 2), 0.0, 2)


def test_interval_of_few_images_covers_as_often_as_it_says() -> None:
    found = [replicated_mean(normals(4, 1, seed=i) + 0.2 * normals(4, 2, seed=1000 + i)) for i in range(1000)]
    covered = sum(low < 0 < high for low, high in (one.interval for one in found))
    assert covered == pytest.approx(950, abs=28)  # four standard errors


def test_interval_is_students() -> None:
    values = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [9.0, 9.0]], dtype=torch.float64)
    low, high = replicated_mean(values).interval  # t of 3 degrees of freedom; the sum of squares is 38
    assert (low, high) == pytest.approx((4 - 3.18244630528 * (38 / 3 / 4) ** 0.5, 4 + 3.18244630528 * (38 / 12) ** 0.5))


def test_spread_that_the_draws_explain_is_not_resolved() -> None:
    values = torch.tensor([[0.0, 2.0], [0.0, 2.0], [1.0, 3.0]], dtype=torch.float64)  # within: 2/2, over images: 1/3
    assert math.isnan(replicated_mean(values).image_se)
    values[2] += 3  # over images: 16/3
    assert replicated_mean(values).image_se == pytest.approx(math.sqrt((16 / 3 - 1) / 3))


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_told_is_nan() -> None:
    one_draw, one_image = replicated_mean(normals(5, 1)), replicated_mean(normals(1, 2))
    assert math.isnan(one_draw.mc_se)
    assert math.isnan(one_draw.image_se)
    assert math.isfinite(one_image.mc_se)
    assert math.isnan(one_image.image_se)
