"""The solvers on an equation with a formula, z' = z cos φ: their orders, tolerances, counts, and batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from noising.diffusion.likelihood.solvers import (
    DormandPrince,
    RungeKutta4,
    Solution,
    Solver,
    even_in_angle,
    even_in_log_snr,
)
from tests.diffusion.helpers import normals

Spacing = Callable[[float, float, int], list[float]]
START, END = 0.2, 1.0


def slope(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """The rate is the sum of squares: what it integrates to depends on the path, and is 2 pixels wide."""
    return z * math.cos(angle), (z**2 * math.cos(angle)).flatten(1).sum(1)


def solution(z: Tensor) -> tuple[Tensor, Tensor]:
    """z = z₀ e^(sin φ − sin φ₀), ∫ z² cos φ dφ = (z² − z₀²)/2."""
    end = z * math.exp(math.sin(END) - math.sin(START))
    return end, ((end**2 - z**2) / 2).flatten(1).sum(1)


def solve(solver: Solver, z: Tensor) -> Solution:
    return solver(slope, z, START, END)


@pytest.mark.parametrize("spacing", [even_in_angle, even_in_log_snr], ids=lambda spacing: spacing.__name__)
def test_runge_kutta_is_of_fourth_order_in_the_state_and_in_the_integral(spacing: Spacing) -> None:
    z = normals(3, 1, 1, 2)
    end, integral = solution(z)
    errors = []
    for steps in (8, 16, 32):
        found = solve(RungeKutta4(steps, spacing), z)
        errors.append([float((found.z - end).abs().max()), float((found.integral - integral).abs().max())])
    for coarse, fine in pairwise(errors):
        for before, after in zip(coarse, fine, strict=True):
            assert before / after == pytest.approx(16, rel=0.25)


@pytest.mark.parametrize("end", [1.2, math.atan(80), math.atan(1e4), math.pi / 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_grids_rise_from_end_to_end(steps: int, end: float) -> None:
    for spacing in (even_in_angle, even_in_log_snr):
        angles = spacing(0.006, end, steps)
        assert len(angles) == steps + 1
        assert (angles[0], angles[-1]) == (0.006, end)
        assert all(now < then for now, then in pairwise(angles))
    if end < math.pi / 2:
        ratios = [math.tan(then) / math.tan(now) for now, then in pairwise(angles)]
        assert ratios == pytest.approx([ratios[0]] * steps)


@pytest.mark.parametrize("steps", [2, 3, 50])
def test_what_is_drowned_in_noise_is_one_step(steps: int) -> None:
    """From σ/α = 1e5 to the end; the others are uniform in λ."""
    angles = even_in_log_snr(0.006, math.pi / 2, steps)
    assert math.tan(angles[-2]) == pytest.approx(1e5, rel=1e-9)
    ratios = [math.tan(then) / math.tan(now) for now, then in pairwise(angles[:-1])]
    assert ratios == pytest.approx([ratios[0]] * (steps - 1), rel=1e-9)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-9])
def test_dormand_prince_meets_its_tolerance(tolerance: float) -> None:
    z = normals(5, 1, 1, 2)
    end, integral = solution(z)
    found = solve(DormandPrince(tolerance, tolerance), z)
    assert float((found.z - end).abs().max()) < 5 * tolerance  # of a step; the steps are few
    assert float((found.integral - integral).abs().max()) < 10 * tolerance
    assert float((found.z - end).abs().max()) > 1e-4 * tolerance  # it does not work for nothing either


def test_no_image_of_a_batch_hides_behind_the_others() -> None:
    """One image in 200 moves, and has the accuracy that it has alone."""
    z = torch.zeros(200, 1, 1, 2, dtype=torch.float64)
    z[17] = 3.0
    together, alone = (solve(DormandPrince(1e-5, 1e-5), z[rows]) for rows in (slice(None), slice(17, 18)))
    torch.testing.assert_close(together.z[17], alone.z[0], rtol=1e-10, atol=0)
    assert together.evaluations == alone.evaluations


def test_accuracy_is_a_pixels_however_many_there_are() -> None:
    few, many = (torch.full((3, 1, side, side), 2.0, dtype=torch.float64) for side in (1, 20))
    solver = DormandPrince(1e-5, 1e-5)
    assert solve(solver, few).evaluations == solve(solver, many).evaluations


def test_the_integral_does_not_hide_behind_the_pixels() -> None:
    """Pixels that stand still and a rate that does not: the integral alone sets the steps."""

    def still(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(z), z.flatten(1).sum(1) * math.cos(20 * angle)

    z = torch.ones(2, 1, 10, 10, dtype=torch.float64)
    found = DormandPrince(1e-6, 1e-6)(still, z, START, END)
    expected = 100 * (math.sin(20 * END) - math.sin(20 * START)) / 20
    torch.testing.assert_close(found.integral, torch.full((2,), expected, dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_integral_counts_as_much_as_all_pixels_of_its_image() -> None:
    """The same function, once as the pixels' velocity and once as the rate: the same steps, and so the same error."""

    def moving(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        return torch.full_like(z, math.cos(20 * angle)), torch.zeros(len(z), dtype=torch.float64)

    def counting(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(z), torch.full((len(z),), 4 * math.cos(20 * angle), dtype=torch.float64)

    z = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    pixels, integral = (DormandPrince(1e-6, 1e-6)(slope, z, START, END) for slope in (moving, counting))
    assert pixels.evaluations == integral.evaluations
    torch.testing.assert_close(integral.integral / 4, pixels.z.flatten(1).mean(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", [RungeKutta4(5), DormandPrince(1e-5, 1e-5)], ids=lambda s: type(s).__name__)
def test_evaluations_are_counted_and_the_type_is_the_images(solver: Solver) -> None:
    calls = []

    def counting(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        calls.append((angle, z.dtype))
        return slope(z, angle)

    found = solver(counting, normals(2, 1, 1, 2).float(), START, END)
    assert found.evaluations == len(calls)
    assert {dtype for _, dtype in calls} == {torch.float32}
    assert found.integral.dtype == torch.float64
    assert min(calls)[0] == START
    assert max(calls)[0] == END


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        RungeKutta4(0)
    with pytest.raises(ValueError, match="rtol and atol must be positive, got 0 and 1"):
        DormandPrince(0, 1)
    with pytest.raises(ValueError, match="the flow is not finite at σ/α = "):
        DormandPrince(1e-3, 1e-3)(lambda z, angle: (z / 0, z.flatten(1).sum(1)), torch.ones(1, 1, 1, 1), START, END)
