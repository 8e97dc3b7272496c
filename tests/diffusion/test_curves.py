"""Each curve is its paper's formula; the wrapped and the learned one do what they say to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from noising.diffusion.schedules import (
    Cosine,
    LearnedLogSNR,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    RectifiedFlow,
    ResolutionShift,
    ScaledLinearBeta,
    SigmoidAlphaBar,
    SigmoidBeta,
    TabulatedBeta,
    ZeroTerminalSNR,
)
from noising.diffusion.transitions import Chain

T = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("start", "end", "temperature"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7)])
def test_sigmoid_alpha_bar_is_jabris_formula(start: float, end: float, temperature: float) -> None:
    t = T.numpy()
    low, high = (logistic(np.array(side / temperature)) for side in (start, end))
    expected = (high - logistic((t * (end - start) + start) / temperature)) / (high - low)
    ours = torch.sigmoid(SigmoidAlphaBar(start, end, temperature).log_snr(T)).numpy()
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
    exploding, straight = LogLinearSigma(0.002, 80)(T), RectifiedFlow()(T)
    torch.testing.assert_close(exploding.sigma.flatten(), 0.002 ** (1 - T) * 80**T, rtol=1e-12, atol=0)
    torch.testing.assert_close(straight.sigma.flatten(), T, rtol=1e-12, atol=0)
    torch.testing.assert_close(straight.alpha.flatten(), 1 - T, rtol=1e-12, atol=0)
    assert LogLinearSigma(0.002, 80).prior_std == pytest.approx(80)


def test_zero_terminal_snr_is_lins_algorithm() -> None:
    """To the 3e-7 that come of holding √ᾱ at t = 0 and not at the first step."""
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ours = ZeroTerminalSNR(LinearBeta(1000))(torch.arange(1, 1001, dtype=torch.float64) / 1000).alpha.flatten().numpy()
    difference = np.abs(ours - expected).max()
    assert 1e-7 < difference < 5e-7


def test_resolution_shift_is_two_logarithms_of_the_ratio() -> None:
    base, shifted = Cosine(1000), ResolutionShift(Cosine(1000), 256, base_resolution=64)
    torch.testing.assert_close(shifted.log_snr(T), base.log_snr(T) - 2 * math.log(4), rtol=1e-12, atol=0)


def randomized(seed: int = 0) -> LearnedLogSNR:
    schedule = LearnedLogSNR(9, -7, width=16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter.add_(2 * torch.randn(parameter.shape, generator=generator))
    return schedule


@pytest.mark.parametrize("seed", range(5))
def test_learned_schedule_is_monotone_with_its_ends_whatever_the_weights(seed: int) -> None:
    schedule = randomized(seed)
    with torch.no_grad():
        log_snr = schedule.log_snr(torch.linspace(0, 1, 500, dtype=torch.float64))
    assert log_snr[[0, -1]].tolist() == pytest.approx([9, -7], abs=1e-12)
    assert bool((log_snr.diff() < 0).all())


def test_learned_schedule_starts_as_the_straight_line() -> None:
    with torch.no_grad():
        off = LearnedLogSNR(9, -7).log_snr(T) - LinearLogSNR(9, -7).log_snr(T)
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
