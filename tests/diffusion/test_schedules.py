"""λ falls, its inverse and its rate are those of the curve, the geometry keeps its promise, the table is exact."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noising.diffusion.levels import Geometry, Straight, VarianceExploding, VariancePreserving
from noising.diffusion.schedules import (
    Cosine,
    LearnedLogSNR,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    ResolutionShift,
    ScaledLinearBeta,
    Schedule,
    SigmoidAlphaBar,
    SigmoidBeta,
    TabulatedBeta,
    ZeroTerminalSNR,
)
from tests.diffusion.conftest import SCHEDULES, final_classes, normals
from tests.reference import ddpm

TIMES = torch.linspace(1e-4, 1, 997, dtype=torch.float64)


def test_every_final_class_is_tested() -> None:
    assert final_classes(Schedule) == {type(schedule) for schedule in SCHEDULES.values()}


def test_log_snr_falls_strictly(schedule: Schedule) -> None:
    assert bool((schedule.log_snr(TIMES).diff() < 0).all())


def test_scales_lie_on_the_declared_line_and_hold_the_ratio(schedule: Schedule) -> None:
    level = schedule(TIMES)
    measure = schedule.geometry.measure(level.alpha, level.sigma)
    torch.testing.assert_close(measure, torch.ones_like(measure), rtol=1e-14, atol=0)
    torch.testing.assert_close((level.alpha / level.sigma) ** 2, level.log_snr.exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("geometry", [VariancePreserving(), VarianceExploding(), Straight()])
def test_geometries_are_the_papers(geometry: Geometry) -> None:
    log_snr = torch.linspace(-9, 9, 19, dtype=torch.float64)
    ratio = log_snr.exp().sqrt()  # α/σ
    alpha, sigma = geometry.scales(log_snr)
    expected = {
        VariancePreserving: 1 / (1 + ratio**-2).sqrt(),
        VarianceExploding: 0 * ratio + 1,
        Straight: 1 / (1 + 1 / ratio),
    }
    torch.testing.assert_close(alpha, expected[type(geometry)], rtol=1e-13, atol=0)
    torch.testing.assert_close(sigma, expected[type(geometry)] / ratio, rtol=1e-13, atol=0)
    ends = {VariancePreserving: 1, VarianceExploding: math.exp(2.5), Straight: 1}
    assert geometry.prior_std(torch.tensor(-5.0)) == pytest.approx(ends[type(geometry)])


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "cosine_exploding", "linear_straight", "rectified_flow", "zero_terminal"]
)
def test_clean_level_is_exactly_clean(name: str) -> None:
    level = SCHEDULES[name](torch.zeros(1))
    assert (level.alpha.item(), level.sigma.item(), level.log_snr.item()) == (1.0, 0.0, torch.inf)


@pytest.mark.parametrize("name", ["rectified_flow", "zero_terminal"])
def test_no_signal_is_exactly_none(name: str) -> None:
    level = SCHEDULES[name](torch.ones(1))
    assert (level.alpha.item(), level.sigma.item(), level.log_snr.item()) == (0.0, 1.0, -torch.inf)


@pytest.mark.parametrize(("name", "timesteps"), [("linear", 1000), ("cosine", 1000), ("linear", 4000), ("cosine", 50)])
def test_table_is_exact_at_its_steps(name: str, timesteps: int) -> None:
    ours = {"linear": LinearBeta, "cosine": Cosine}[name](timesteps)
    theirs = {"linear": ddpm.linear_beta, "cosine": ddpm.cosine_beta}[name](timesteps)
    t = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
    expected = torch.from_numpy((1 - theirs).cumprod())
    torch.testing.assert_close(torch.sigmoid(ours.log_snr(t)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (LinearBeta(1000), 4.03583e-5),
        (LinearBeta(4000), 4.24665e-5),
        (Cosine(1000), 2.42877e-9),
        (Cosine(4000), 1.51798e-10),
    ],
    ids=["linear-1000", "linear-4000", "cosine-1000", "cosine-4000"],
)
def test_published_end_of_the_chain(schedule: Schedule, last: float) -> None:
    end = torch.sigmoid(schedule.log_snr(torch.ones(1, dtype=torch.float64))).item()
    assert end == pytest.approx(last, rel=2e-6)


@settings(max_examples=150, deadline=None)
@given(st.floats(1e-3, 1), st.sampled_from([*SCHEDULES.values(), LinearBeta(37), Cosine(37)]))
def test_time_is_the_inverse(t: float, schedule: Schedule) -> None:
    time = torch.tensor([t], dtype=torch.float64)
    log_snr = schedule.log_snr(time)
    # one curve is cut off within 1e-8 of its end
    assert schedule.time(log_snr).item() == pytest.approx(t, rel=1e-8)
    assert Schedule.time(schedule, log_snr).item() == pytest.approx(t, rel=1e-8)


def test_rate_is_the_derivative(schedule: Schedule) -> None:
    t = torch.linspace(0.0123456, 0.9786543, 41, dtype=torch.float64)  # off the kinks at i/T
    step = 1e-6
    finite = (schedule.log_snr(t + step) - schedule.log_snr(t - step)) / (2 * step)
    torch.testing.assert_close(schedule.log_snr_rate(t), finite, rtol=1e-6, atol=0)
    torch.testing.assert_close(Schedule.log_snr_rate(schedule, t), schedule.log_snr_rate(t), rtol=1e-9, atol=0)


def test_moving_or_halving_the_module_leaves_the_table_alone(preserving: Schedule) -> None:
    before = preserving.log_snr(TIMES)
    halved = copy.deepcopy(preserving).half().to(torch.bfloat16)
    assert torch.equal(halved.log_snr(TIMES), before)


def test_perturb_keeps_the_images_type(schedule: Schedule) -> None:
    x, noise = normals(2, 1, 3, 3), normals(2, 1, 3, 3, seed=1)
    level = schedule(torch.tensor([0.2, 0.7]))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert level.perturb(x.to(dtype), noise.to(dtype)).dtype == dtype
    one = schedule(torch.tensor(0.7))
    assert one.perturb(x.float(), noise.float()).dtype == torch.float32
    torch.testing.assert_close(one.perturb(x, noise)[1], level.perturb(x, noise)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearBeta(0), "timesteps must be at least 1"),
        (lambda: Cosine(0), "timesteps must be at least 1"),
        (lambda: LinearBeta(1000, beta_start=0.0), "beta_start must be in"),
        (lambda: LinearBeta(1000, beta_start=0.3, beta_end=0.2), "beta_start must be in"),
        (lambda: LinearBeta(20), "raise timesteps above 20"),
        (lambda: ScaledLinearBeta(1000, beta_start=0.3, beta_end=0.2), "beta_start must be in"),
        (lambda: SigmoidBeta(20), "raise timesteps above 20"),
        (lambda: SigmoidAlphaBar(start=3.0), "start must be below end"),
        (lambda: SigmoidAlphaBar(temperature=0.0), "temperature must be positive"),
        (lambda: SigmoidAlphaBar(smallest=0.0), "smallest must be between 0 and 1"),
        (lambda: LinearLogSNR(-5, 5), "log_snr_max must be above log_snr_min"),
        (lambda: LearnedLogSNR(-5, 5), "log_snr_max must be above log_snr_min"),
        (lambda: LearnedLogSNR(width=0), "width must be at least 1"),
        (lambda: LogLinearSigma(1.0, 0.5), "sigma_min must be in"),
        (lambda: ZeroTerminalSNR(LogLinearSigma()), "variance-exploding"),
        (lambda: ResolutionShift(Cosine(), 64, base_resolution=0), "base_resolution must be at least 1"),
        (lambda: Cosine(offset=-1.0), "offset must not be negative"),
        (lambda: Cosine(max_beta=1.0), "max_beta must be between 0 and 1"),
    ],
)
def test_bad_options_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_cosine_keeps_beta_below_its_limit() -> None:
    chain_end: TabulatedBeta = Cosine(1000, max_beta=0.5)
    log_alpha_bar = torch.nn.functional.logsigmoid(chain_end.log_snr(TIMES[-200:]))
    per_step = log_alpha_bar.diff() / (TIMES.diff()[-1] * 1000)
    assert per_step.min().item() >= torch.log(torch.tensor(0.5)).item() - 1e-9
