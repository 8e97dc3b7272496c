"""Orders of convergence on data whose flow is known, the identities between solvers, and the grids they step on."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from noising.diffusion.grids import karras, leading, quadratic, respaced, trailing, uniform, uniform_log_snr
from noising.diffusion.levels import Straight, VarianceExploding
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.samplers import DDIM, DPMPP2M, Ancestral, Heun, Sampler
from noising.diffusion.schedules import (
    Cosine,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    RectifiedFlow,
    Schedule,
    ZeroTerminalSNR,
)
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import PixelMixture, gaussian
from tests.diffusion.helpers import Crooked, denoiser_of, in_turn, mixture, normals

by_log_snr = partial(uniform_log_snr, timesteps=1000)
by_sigma = partial(karras, timesteps=1000)
GRIDS = {
    "uniform": uniform,
    "quadratic": partial(quadratic, timesteps=1000),
    "trailing": partial(trailing, timesteps=1000),
    "leading": partial(leading, timesteps=1000),
    "respaced": partial(respaced, timesteps=1000),
    "uniform_log_snr": by_log_snr,
    "karras": by_sigma,
}


def before_the_last(sampler: Sampler, schedule: Schedule, oracle: PixelMixture) -> Tensor:
    """x at the cleanest time of the grid, before the step to clean, from the same x_T."""
    denoiser = oracle_denoiser(oracle, schedule, Velocity(), FixedSmall())
    points = list(sampler.path(denoiser, lambda: normals(4, 1, 2, 2)))
    return points[-2].x_t


@pytest.mark.parametrize("schedule", [Cosine(1000), LinearBeta(1000), LogLinearSigma(0.02, 20.0)], ids=type)
@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda steps: DDIM(steps, by_log_snr, None), 1),
        (lambda steps: DPMPP2M(steps, by_log_snr, None), 2),
        (lambda steps: Heun(steps, by_sigma, None), 2),
    ],
    ids=["ddim", "dpmpp_2m", "heun"],
)
def test_order_of_convergence(schedule: Schedule, make, order: int) -> None:  # type: ignore[no-untyped-def]
    """Errors against a solution with many more steps halve, or quarter, as steps double."""
    exact = before_the_last(Heun(1500, by_sigma, None), schedule, mixture())
    coarse, fine = (
        float((before_the_last(make(steps), schedule, mixture()) - exact).abs().max()) for steps in (120, 240)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    "make", [partial(Heun, grid=by_sigma, clip=None), partial(DPMPP2M, grid=by_log_snr, clip=None)]
)
def test_second_order_reaches_the_known_map(make) -> None:  # type: ignore[no-untyped-def]
    """Gaussian data: the flow only rescales, by the ratio of the standard deviations at both ends."""
    schedule, std = Cosine(1000), 0.5
    sampler = make(steps=100)
    start = normals(4, 1, 2, 2)
    levels = schedule(sampler.grid(100, schedule)[[0, -1]])
    clean, noisy = (levels.alpha**2 * std**2 + levels.sigma**2).sqrt().flatten().tolist()
    found = before_the_last(sampler, schedule, gaussian(std))
    torch.testing.assert_close(found, start * clean / noisy, rtol=0.02, atol=1e-3)


def test_two_evaluations_a_step_are_counted() -> None:
    calls = []

    class Counted(Crooked):
        def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            calls.append(1)
            return super().forward(x, noise_label, class_label)

    denoiser = denoiser_of(Counted(), Cosine(1000), Velocity())
    for sampler in (Heun(7, by_sigma), DPMPP2M(7, by_log_snr), DDIM(7, uniform), Ancestral(7, uniform)):
        calls.clear()
        sampler(denoiser, lambda: normals(2, 1, 3, 3))
        assert len(calls) == sampler.evaluations(denoiser)
    assert Heun(18, by_sigma).evaluations(denoiser_of(Crooked(), LinearBeta(1000))) == 35


def test_heun_begins_in_noise() -> None:
    """From σ/α = 2·10⁴ in few even steps: the second look sees more than the first, and that must not be multiplied."""
    denoiser = oracle_denoiser(mixture(), Cosine(1000), Velocity(), FixedSmall())
    assert Cosine(1000)(torch.ones(1)).log_snr.item() < -2 * math.log(1e4)

    def drawn(sampler: Sampler) -> Tensor:
        return sampler(denoiser, lambda: normals(50, 1, 2, 2))

    exact = drawn(DPMPP2M(1000, uniform, None))
    errors = [float((drawn(sampler(10, uniform, None)) - exact).abs().max()) for sampler in (Heun, DDIM)]
    assert errors[0] < errors[1] / 2


def test_one_step_of_either_is_ddims() -> None:
    denoiser = denoiser_of(Crooked(), Cosine(1000), Velocity())
    one = DDIM(1, uniform, None)(denoiser, lambda: normals(2, 1, 3, 3))
    for sampler in (Heun(1, uniform, None), DPMPP2M(1, uniform, None)):
        torch.testing.assert_close(sampler(denoiser, lambda: normals(2, 1, 3, 3)), one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), ZeroTerminalSNR(Cosine(1000))], ids=type)
@pytest.mark.parametrize("sampler", [Heun(30, by_sigma, None), DPMPP2M(30, by_log_snr, None)], ids=type)
def test_no_signal_at_the_end_is_no_obstacle(sampler: Sampler, schedule: Schedule) -> None:
    """The first step from α = 0 is DDIM's, and what is drawn of Gaussian data has its spread."""
    denoiser = oracle_denoiser(gaussian(0.5), schedule, Velocity(), FixedSmall())
    start = normals(2000, 1, 1, 1)
    drawn = sampler(denoiser, lambda: start)
    assert (drawn.std() / start.std()).item() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("stochastic", [False, True])
def test_dpmpp_draws_the_data(stochastic: bool) -> None:
    """The variance of what is drawn of Gaussian data, over fresh noise in every step."""
    denoiser = oracle_denoiser(gaussian(0.5), Cosine(1000), Velocity(), FixedSmall())
    noises = normals(60, 20_000, 1, 1, 1)
    drawn = DPMPP2M(50, by_log_snr, None, stochastic=stochastic)(denoiser, in_turn(noises))
    assert drawn.std().item() == pytest.approx(0.5, rel=0.02)
    fresh = (drawn * noises[0]).mean() / drawn.std()  # correlation with x_T
    assert (abs(fresh.item()) < 0.1) == stochastic


def test_churn_keeps_the_spread_and_adds_noise() -> None:
    denoiser = oracle_denoiser(gaussian(0.5), LogLinearSigma(0.02, 20.0), Velocity(), FixedSmall())
    still, churned = (
        Heun(40, by_sigma, None, churn=churn)(denoiser, in_turn(normals(60, 20_000, 1, 1, 1))) for churn in (0.0, 20.0)
    )
    assert still.std().item() == pytest.approx(0.5, rel=0.02)
    assert churned.std().item() == pytest.approx(0.5, rel=0.02)
    assert not torch.allclose(still, churned, atol=0.01)
    outside = Heun(40, by_sigma, None, churn=20.0, churn_min=1e3, churn_max=1e4)
    assert torch.equal(outside(denoiser, in_turn(normals(60, 20_000, 1, 1, 1))), still)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_grids_rise_to_the_end(grid, schedule: Schedule) -> None:  # type: ignore[no-untyped-def]
    for steps in (1, 2, 10, 50):
        times = grid(steps, schedule)
        assert times.shape == (steps,)
        assert times[0] > 0
        assert bool((times.diff() > 0).all())
        assert times[-1] == 1 or (grid.func is leading and times[-1] < 1)


def test_grids_of_a_schedule_without_signal_at_its_end_are_spaced_as_to_a_sigma_of_eighty() -> None:
    """Their last time is 1 all the same; before it they are those of a chain that ends at σ/α = 80."""
    schedule, clean = ZeroTerminalSNR(LinearBeta(1000)), torch.tensor([1e-3], dtype=torch.float64)
    start, end = float(schedule.log_snr(clean)), -2 * math.log(80)
    found = schedule.log_snr(by_log_snr(5, schedule))
    expected = torch.linspace(start, end, 5, dtype=torch.float64)
    torch.testing.assert_close(found[:-1], expected[:-1], rtol=1e-9, atol=1e-9)
    roots = torch.linspace(math.exp(-start / 2) ** (1 / 7), 80 ** (1 / 7), 5, dtype=torch.float64)
    found = (-schedule.log_snr(by_sigma(5, schedule)) / 2).exp()
    torch.testing.assert_close(found[:-1], roots[:-1] ** 7, rtol=1e-8, atol=0)


def test_churn_is_one_process_in_every_geometry() -> None:
    """Heun's steps are in x/α against σ/α: the image does not depend on how α and σ share their ratio."""
    noises = normals(40, 2, 1, 2, 2)
    found = []
    for geometry in (None, VarianceExploding(), Straight()):
        schedule = LinearLogSNR(9.0, -9.0, geometry)
        denoiser = oracle_denoiser(mixture(), schedule, Velocity(), FixedSmall())
        sampler = Heun(12, by_sigma, None, churn=4.0, churn_min=0.05, churn_max=50.0, churn_noise=1.1)
        end = schedule(torch.ones((), dtype=torch.float64))
        first = noises[:1] * (end.sigma / schedule.prior_std)  # the same x/α, whatever the width of the prior
        found.append(sampler(denoiser, in_turn(torch.cat([first, noises[1:]]))))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-7, atol=1e-7)
    still = Heun(12, by_sigma, None)(denoiser, in_turn(noises))
    assert float((still - found[0]).abs().max()) > 0.01


def test_grids_are_the_papers() -> None:
    schedule = Cosine(1000)
    steps = {name: (1000 * grid(4, schedule)).round().long().tolist() for name, grid in GRIDS.items()}
    assert steps["trailing"] == [250, 500, 750, 1000]
    assert steps["leading"] == [1, 251, 501, 751]
    assert steps["respaced"] == [1, 334, 667, 1000]
    sigma = (-LinearBeta(1000).log_snr(by_sigma(6, LinearBeta(1000))) / 2).exp() ** (1 / 7)
    torch.testing.assert_close(sigma.diff(), sigma.diff().mean().expand(5), rtol=1e-6, atol=1e-9)
    log_snr = LinearBeta(1000).log_snr(by_log_snr(6, LinearBeta(1000)))
    torch.testing.assert_close(log_snr.diff(), log_snr.diff().mean().expand(5), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trailing(2000, Cosine(1000), 1000), "more than the 1000 whole steps"),
        (lambda: karras(5, Cosine(1000), 1000, rho=0.0), "rho must lie between 0.1 and 1000"),
        (lambda: Heun(0, uniform), "steps must be at least 1"),
        (lambda: Heun(5, uniform, churn=-1.0), "churn must not be negative"),
        (lambda: Heun(5, uniform, churn_min=2.0, churn_max=1.0), "churn_min must be positive and at most churn_max"),
    ],
)
def test_bad_options_are_named(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
