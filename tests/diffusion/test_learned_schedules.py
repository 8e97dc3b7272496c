"""A learned schedule holds its promises for any weights, and its weights get the gradient of what is asked of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from noising.diffusion.levels import Straight, VarianceExploding
from noising.diffusion.noise_labels import ScaledTime
from noising.diffusion.objectives import ContinuousBound
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.schedules import LearnedLogSNR, ResolutionShift, Schedule, ZeroTerminalSNR
from tests.diffusion.conftest import Crooked, denoiser_of, images, normals
from tests.diffusion.test_curves import randomized

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
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
        log_snr = schedule.log_snr(T)
        finite = (schedule.log_snr(T + step) - schedule.log_snr(T - step)) / (2 * step)
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(schedule.time(log_snr), T, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.log_snr_rate(T).detach(), finite, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("geometry", [None, VarianceExploding(), Straight()], ids=lambda g: type(g).__name__)
def test_scales_hold_the_ratio_in_every_geometry(geometry: VarianceExploding | Straight | None) -> None:
    schedule = LearnedLogSNR(9, -7, width=5, geometry=geometry)
    with torch.no_grad():
        level = schedule(T)
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
            return (as_scalars * schedule.log_snr_rate(T)).sum()

    for value in (lambda: (as_scalars * schedule.log_snr(T)).sum(), rate):
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
