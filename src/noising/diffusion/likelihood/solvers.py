"""Solvers of the probability flow: dz/dφ = v(z, φ), with the integral of a rate, the divergence of v, along it.

The rate does not affect z, so its integral is a quadrature over the solver's stages, in float64.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from noising.errors import require

Slope = Callable[[Tensor, float], tuple[Tensor, Tensor]]  # (z (B, C, H, W), φ) -> (v (B, C, H, W), rate (B,))
MAX_STEPS = 1_000_000  # upper limit of the steps of `RungeKutta4`
_LOG_DROWNED = math.log(1e5)  # log σ/α of negligible signal: levels beyond, α = 0 among them, are crossed in one step


class Solution(NamedTuple):
    """The end z (B, C, H, W) of a flow, and its cost in evaluations of the slope, each for the whole batch.

    integral: (B,), the rate's over φ, float64 on the host.
    """

    z: Tensor
    integral: Tensor
    evaluations: int


class Solver(ABC):
    """A method for ordinary differential equations with a given accuracy."""

    @abstractmethod
    def __call__(self, slope: Slope, z: Tensor, start: float, end: float) -> Solution:
        """Solve from z (B, C, H, W) at φ = start to φ = end; the slope is evaluated in z's type and on its device."""


def even_in_angle(start: float, end: float, steps: int) -> list[float]:
    """Angles from start to end (steps + 1,), uniform in φ: for flows that are smooth in φ, as those of smooth data.

    It cannot resolve changes near an end, at σ/α or α/σ far below a step: fine structure of the data, or a network
    that predicts noise at α ≈ 0, whose x̂ = (x_t − σ ε̂)/α magnifies its error.
    """
    return [float(angle) for angle in np.linspace(start, end, steps + 1)]


def even_in_log_snr(start: float, end: float, steps: int) -> list[float]:
    """Angles from start to end (steps + 1,), uniform in λ = −2 log tan φ, which resolves both ends alike.

    The part beyond σ/α = 1e5 is a single step.
    """
    first, last = math.log(math.tan(start)), math.log(math.tan(end))
    if first < _LOG_DROWNED < last:
        inside = np.linspace(first, _LOG_DROWNED, steps)[1:]
    else:
        inside = np.linspace(first, last, steps + 1)[1:-1]
    return [start, *np.arctan(np.exp(inside)).tolist(), end]


class RungeKutta4(Solver):
    """The classical Runge-Kutta method of fourth order, with the same steps for every image in any batch.

    Kutta, "Beitrag zur näherungsweisen Integration totaler Differentialgleichungen" (1901).
    """

    def __init__(self, steps: int, spacing: Callable[[float, float, int], list[float]] = even_in_log_snr) -> None:
        """steps: their number, of four evaluations each; spacing: (start, end, steps) -> angles (steps + 1,)."""
        require(steps >= 1, f"steps must be at least 1, got {steps}")
        require(steps <= MAX_STEPS, f"steps must be at most {MAX_STEPS}, got {steps}")
        self.steps = steps
        self.spacing = spacing

    def __call__(self, slope: Slope, z: Tensor, start: float, end: float) -> Solution:
        integral = torch.zeros(len(z), dtype=torch.float64)
        for now, then in pairwise(self.spacing(start, end, self.steps)):
            step, middle = then - now, (now + then) / 2
            v1, d1 = slope(z, now)
            v2, d2 = slope(z + step / 2 * v1, middle)
            v3, d3 = slope(z + step / 2 * v2, middle)
            v4, d4 = slope(z + step * v3, then)
            z = z + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            for weight, rate in ((1, d1), (2, d2), (2, d3), (1, d4)):
                integral += step / 6 * weight * rate.cpu().double()
        return Solution(z, integral, 4 * self.steps)


class DormandPrince(Solver):
    """The embedded pair of orders 5 and 4, with steps adapted to a tolerance of each image's error per step.

    An image's errors are the root mean square over its pixels and the error of integral/D. Both are kept below
    atol + rtol |value| in each step; over a whole flow they add up to about ten times the tolerance (1e-4 bits/dim at
    1e-5, measured). A batch takes common steps, small enough for all its images, so results depend on the batch to that
    extent. With a float32 network and tolerances below about 1e-6 rounding dominates and the steps become many. The
    state is float64 on the host.

    Dormand & Prince, "A family of embedded Runge-Kutta formulae" (1980), as scipy's RK45.
    """

    def __init__(self, rtol: float, atol: float) -> None:
        require(rtol > 0 and atol > 0, f"rtol and atol must be positive, got {rtol} and {atol}")
        self.rtol = rtol
        self.atol = atol

    def __call__(self, slope: Slope, z: Tensor, start: float, end: float) -> Solution:
        """Solve as in `Solver`. Raises ValueError if the slope is not finite or no step is small enough."""
        images, pixels, dims = len(z), z.numel(), z[0].numel()

        def right_hand_side(angle: float, state: np.ndarray) -> np.ndarray:
            v, rate = slope(torch.from_numpy(state[:pixels]).reshape(z.shape).to(z), angle)
            flat = torch.cat([v.cpu().double().flatten(), rate.cpu().double() / dims]).numpy()
            require(bool(np.isfinite(flat).all()), f"the flow is not finite at σ/α = {math.tan(angle):.3g}")
            return flat

        # scipy's norm is the root mean square over the whole state: with these factors its square is the sum of the
        # images' own, so that a large error of one image or of the integral is not averaged away
        shares = np.sqrt(np.repeat([dims, 1.0], [pixels, images]) / (pixels + images))
        state = np.concatenate([z.cpu().double().flatten().numpy(), np.zeros(images)])
        tolerances = {"rtol": self.rtol * shares, "atol": self.atol * shares}
        solved = solve_ivp(right_hand_side, (start, end), state, method="RK45", t_eval=[end], **tolerances)
        require(solved.success, f"no solution within rtol {self.rtol:g} and atol {self.atol:g}: {solved.message}")
        last = torch.from_numpy(solved.y[:, -1].copy())
        return Solution(last[:pixels].reshape(z.shape), dims * last[pixels:], int(solved.nfev))
