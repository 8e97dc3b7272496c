"""λ falls, its inverse and its rate are those of the curve, the geometry keeps its promise, the table is exact."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from noising.diffusion.levels import Geometry, Straight, VarianceExploding, VariancePreserving
from noising.diffusion.noise_labels import ScaledTime
from noising.diffusion.objectives import ContinuousBound
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.schedules import (
    VPSDE,
    Cosine,
    GreyLevelLogSNR,
    LearnedLogSNR,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    RectifiedFlow,
    ResolutionShift,
    ScaledLinearBeta,
    Schedule,
    SigmoidAlphaBar,
    SigmoidBeta,
    TabulatedBeta,
    ZeroTerminalSNR,
)
from noising.diffusion.transitions import Chain
from tests.diffusion.helpers import SCHEDULES, Crooked, denoiser_of, final_classes, images, normals, randomized
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


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_beyond_the_ends_are_those_of_the_ends(name: str) -> None:
    start, end = SCHEDULES[name].log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    beyond = torch.tensor([start + 3, end - 3], dtype=torch.float64)
    torch.testing.assert_close(SCHEDULES[name].time(beyond), torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-8)


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


@pytest.mark.parametrize(("levels", "log_snr_max"), [(2, 2.197), (17, 7.742), (256, 13.280)])
def test_three_standard_deviations_of_the_first_noise_are_half_a_grey_level(levels: int, log_snr_max: float) -> None:
    schedule = GreyLevelLogSNR(levels)
    start = schedule(torch.zeros(1, dtype=torch.float64))
    assert float(3 * start.sigma / start.alpha) == pytest.approx(1 / (levels - 1), rel=1e-12)  # half of 2/(K − 1)
    assert schedule.log_snr_max == pytest.approx(log_snr_max, abs=1e-3)
    assert float(schedule.log_snr(torch.ones(1, dtype=torch.float64))) == pytest.approx(-5, rel=1e-14)


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
        (lambda: VPSDE(20.0, 0.1), "beta_min must be in"),
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


# Each curve is its paper's formula


INSIDE = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("start", "end", "temperature"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-2.0, 3.0, 0.9)])
def test_sigmoid_alpha_bar_is_jabris_formula(start: float, end: float, temperature: float) -> None:
    t = INSIDE.numpy()
    low, high = (logistic(np.array(side / temperature)) for side in (start, end))
    expected = (high - logistic((t * (end - start) + start) / temperature)) / (high - low)
    ours = torch.sigmoid(SigmoidAlphaBar(start, end, temperature).log_snr(INSIDE)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_sigmoid_alpha_bar_leaves_its_smallest() -> None:
    end = SigmoidAlphaBar(smallest=1e-6).log_snr(torch.ones((), dtype=torch.float64))
    assert torch.sigmoid(end).item() == pytest.approx(1e-6, rel=1e-12)


@pytest.mark.parametrize("timesteps", [1000, 4000])
@pytest.mark.parametrize("kind", [LinearBeta, ScaledLinearBeta, SigmoidBeta])
def test_beta_is_the_papers_scaled_by_its_length(kind: type[TabulatedBeta], timesteps: int) -> None:
    start, end = (b * 1000 / timesteps for b in ((8.5e-4, 0.012) if kind is ScaledLinearBeta else (1e-4, 0.02)))
    expected = {
        LinearBeta: np.linspace(start, end, timesteps),
        ScaledLinearBeta: np.linspace(start**0.5, end**0.5, timesteps) ** 2,
        SigmoidBeta: start + (end - start) * logistic(np.linspace(-6, 6, timesteps)),
    }
    ours = Chain.uniform(kind(timesteps), timesteps).beta.numpy()  # type: ignore[call-arg, arg-type]
    np.testing.assert_allclose(ours, expected[kind], rtol=1e-8)


def test_log_linear_sigma_and_rectified_flow_are_what_their_names_say() -> None:
    exploding, straight = LogLinearSigma(0.002, 80)(INSIDE), RectifiedFlow()(INSIDE)
    torch.testing.assert_close(exploding.sigma.flatten(), 0.002 ** (1 - INSIDE) * 80**INSIDE, rtol=1e-12, atol=0)
    torch.testing.assert_close(straight.sigma.flatten(), INSIDE, rtol=1e-12, atol=0)
    torch.testing.assert_close(straight.alpha.flatten(), 1 - INSIDE, rtol=1e-12, atol=0)
    assert LogLinearSigma(0.002, 80).prior_std == pytest.approx(80)


def test_vpsde_is_songs_formula_and_the_limit_of_ddpms_chain() -> None:
    """α = exp(−t² (β_max − β_min)/4 − t β_min/2); a chain of T steps with β_i = β(i/T)/T comes as near as 1/T."""
    alpha = torch.exp(-(INSIDE**2) * (20 - 0.1) / 4 - INSIDE * 0.1 / 2)
    torch.testing.assert_close(VPSDE()(INSIDE).alpha.flatten(), alpha, rtol=1e-12, atol=0)
    apart = []
    for steps in (1000, 2000):
        beta = (0.1 + 19.9 * (torch.arange(1, steps + 1, dtype=torch.float64) / steps)) / steps
        last = torch.log1p(-beta).sum()
        apart.append(float(last - 2 * VPSDE()(torch.ones(1)).alpha.log()))
    assert apart[0] / apart[1] == pytest.approx(2, rel=0.05)


def test_zero_terminal_snr_is_lins_algorithm() -> None:
    """To the 3e-7 that come of holding √ᾱ at t = 0 and not at the first step."""
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ours = ZeroTerminalSNR(LinearBeta(1000))(torch.arange(1, 1001, dtype=torch.float64) / 1000).alpha.flatten().numpy()
    difference = np.abs(ours - expected).max()
    assert 1e-7 < difference < 5e-7
    root = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))  # the first step is farther from 0
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ours = ZeroTerminalSNR(ScaledLinearBeta(1000))(torch.arange(1, 1001).double() / 1000).alpha.flatten().numpy()
    assert np.abs(ours - expected).max() == pytest.approx(3.1e-5, rel=0.05)


def test_resolution_shift_is_two_logarithms_of_the_ratio() -> None:
    base, shifted = Cosine(1000), ResolutionShift(Cosine(1000), 256, base_resolution=64)
    torch.testing.assert_close(shifted.log_snr(INSIDE), base.log_snr(INSIDE) - 2 * math.log(4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_learned_schedule_is_monotone_with_its_ends_whatever_the_weights(seed: int) -> None:
    schedule = randomized(seed)
    with torch.no_grad():
        log_snr = schedule.log_snr(torch.linspace(0, 1, 500, dtype=torch.float64))
    assert log_snr[[0, -1]].tolist() == pytest.approx([9, -7], abs=1e-12)
    assert bool((log_snr.diff() < 0).all())


def test_learned_schedule_starts_as_the_straight_line() -> None:
    with torch.no_grad():
        off = LearnedLogSNR(9, -7).log_snr(INSIDE) - LinearLogSNR(9, -7).log_snr(INSIDE)
    assert off.abs().max() < 0.8


def test_rate_of_a_learned_schedule_has_a_gradient() -> None:
    """Against differences in one weight."""
    schedule, t = randomized(), torch.tensor([0.3, 0.6], dtype=torch.float64)

    def total(off: float) -> Tensor:
        with torch.no_grad():
            schedule.heights[3] += off
        rate = schedule.log_snr_rate(t).sum()
        with torch.no_grad():
            schedule.heights[3] -= off
        return rate

    (gradient,) = torch.autograd.grad(total(0.0), schedule.heights)
    step = 2.0**-8  # exact in float32
    finite = (total(step) - total(-step)) / (2 * step)
    assert gradient[3].item() == pytest.approx(finite.item(), rel=1e-3)


# Learned schedules, with any weights


SPREAD = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
WRAPPED: dict[str, Callable[[Schedule], Schedule]] = {
    "bare": lambda schedule: schedule,
    "shifted": lambda schedule: ResolutionShift(schedule, 128),
    "zero_terminal": ZeroTerminalSNR,
    "both": lambda schedule: ZeroTerminalSNR(ResolutionShift(schedule, 16)),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("seed", range(3))
def test_inverse_and_rate_are_those_of_the_curve_for_any_weights(seed: int, wrapped: str) -> None:
    schedule, step = WRAPPED[wrapped](randomized(seed)), 1e-5
    with torch.no_grad():
        log_snr = schedule.log_snr(SPREAD)
        finite = (schedule.log_snr(SPREAD + step) - schedule.log_snr(SPREAD - step)) / (2 * step)
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(schedule.time(log_snr), SPREAD, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.log_snr_rate(SPREAD).detach(), finite, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("geometry", [None, VarianceExploding(), Straight()], ids=lambda g: type(g).__name__)
def test_scales_hold_the_ratio_in_every_geometry(geometry: VarianceExploding | Straight | None) -> None:
    schedule = LearnedLogSNR(9, -7, width=5, geometry=geometry)
    with torch.no_grad():
        level = schedule(SPREAD)
    measure = schedule.geometry.measure(level.alpha, level.sigma)
    torch.testing.assert_close(measure, torch.ones_like(measure), rtol=0, atol=1e-12)
    torch.testing.assert_close((level.alpha / level.sigma) ** 2, level.log_snr.exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ends_are_held_in_half_precision(dtype: torch.dtype) -> None:
    """The weights are rounded, the curve is not: float64, and the ends exact to its last bits."""
    schedule = randomized().to(dtype)
    with torch.no_grad():
        log_snr = schedule.log_snr(torch.linspace(0, 1, 100, dtype=torch.float64))
    assert log_snr.dtype == torch.float64
    assert log_snr[[0, -1]].tolist() == pytest.approx([9, -7], abs=1e-12)
    assert bool((log_snr.diff() < 0).all())


def differences(value: Callable[[], Tensor], parameter: Tensor, step: float = 1e-6) -> Tensor:
    """d value/d parameter, number by number."""
    found = torch.zeros_like(parameter)
    for i in range(parameter.numel()):
        sides = []
        for side in (step, -step):
            with torch.no_grad():
                before = parameter.flatten()[i].clone()
                parameter.view(-1)[i] = before + side
                sides.append(value().detach())
                parameter.view(-1)[i] = before
        found.view(-1)[i] = (sides[0] - sides[1]) / (2 * step)
    return found


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_curve_and_rate_have_the_gradient_of_every_weight(wrapped: str) -> None:
    """Against differences in float64: the sum of λ and of dλ/dt, each with factors that tell the times apart."""
    learned = randomized().double()
    schedule, as_scalars = WRAPPED[wrapped](learned), torch.linspace(1, 2, 19, dtype=torch.float64)

    def rate() -> Tensor:
        with torch.enable_grad():  # as in training, whatever surrounds it
            return (as_scalars * schedule.log_snr_rate(SPREAD)).sum()

    for value in (lambda: (as_scalars * schedule.log_snr(SPREAD)).sum(), rate):
        gradients = torch.autograd.grad(value(), list(learned.parameters()))
        for parameter, gradient in zip(learned.parameters(), gradients, strict=True):
            assert float(gradient.abs().max()) > 1e-3
            torch.testing.assert_close(gradient, differences(value, parameter), rtol=1e-5, atol=1e-6)


def test_ends_pull_at_no_weight() -> None:
    """The ends are held: their gradient is nothing, to the last bits."""
    schedule = randomized().double()
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).sum()
    for gradient in torch.autograd.grad(ends, list(schedule.parameters())):
        assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_last_time_spoils_no_gradient(wrapped: str) -> None:
    """An image at t = 1 beside one at t = ½: the gradient is that of a time just before, to 1e-3."""
    learned = randomized()
    denoiser = denoiser_of(Crooked(), WRAPPED[wrapped](learned), Velocity())
    denoiser.noise_label = ScaledTime()
    gradients = []
    for last in (1.0, 1 - 1e-9):
        t = torch.tensor([0.5, last], dtype=torch.float64)
        loss = ContinuousBound()(denoiser, images(2), t, normals(2, 1, 3, 3))["loss"].mean()
        gradients.append(torch.autograd.grad(loss, list(learned.parameters())))
    for at_last, before in zip(*gradients, strict=True):
        torch.testing.assert_close(at_last, before, rtol=1e-3, atol=1e-6)
