"""Solvers of the probability flow: they carry z along dz/dφ = v and integrate a rate beside it.

The rate (the divergence of v) does not feed back, so it is a quadrature over the solver's own stages, in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

__all__ = ["DormandPrince", "RungeKutta4", "Slope", "Solution", "Solver", "even_in_angle", "even_in_log_snr"]


Slope = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(z (B, C, H, W), φ) -> (v (B, C, H, W), rate (B,))."""
_LOG_DROWNED = math.log(1e5)
"""log σ/α of an image that is drowned: a level beyond is no other, and α = 0 has none."""


class Solution(NamedTuple):
    """Where the flow ends, and what it cost."""

    z: Tensor
    """(B, C, H, W)."""
    integral: Tensor
    """Of the rate over φ: (B,), float64 on the host."""
    evaluations: int
    """Of the slope, each of the whole batch."""


class Solver(ABC):
    """A method and its accuracy."""

    @abstractmethod
    def __call__(self, slope: Slope, z: Tensor, start: float, end: float) -> Solution:
        """From z (B, C, H, W) at φ = start to φ = end; the slope is evaluated in z's type and on its device."""


def even_in_angle(start: float, end: float, steps: int) -> list[float]:
    """The angles start..end (steps + 1,), evenly: where the flow is smooth in φ, as that of smooth data is.

    Not for what changes next to an end, at σ/α or α/σ far below a step: fine structure of the data, or a network that
    predicts noise at α ≈ 0, whose x̂ = (x_t − σ ε̂)/α magnifies its error.
    """
    return [float(angle) for angle in np.linspace(start, end, steps + 1)]


def even_in_log_snr(start: float, end: float, steps: int) -> list[float]:
    """The same, evenly in λ = −2 log tan φ: as fine for the level at each end. Beyond σ/α = 1e5 is one more step."""
    first, last = math.log(math.tan(start)), math.log(math.tan(end))
    if steps == 1 or not first < _LOG_DROWNED < last:
        inside = np.linspace(first, last, steps + 1)[1:-1]
    else:
        inside = np.linspace(first, _LOG_DROWNED, steps)[1:]
    return [start, *np.arctan(np.exp(inside)).tolist(), end]


MAX_STEPS = 1_000_000


class RungeKutta4(Solver):
    """Runge and Kutta's classical method of fourth order: the same steps for every image, whatever its batch.

    Kutta, "Beitrag zur näherungsweisen Integration totaler Differentialgleichungen" (1901).
    """

    def __init__(self, steps: int, spacing: Callable[[float, float, int], list[float]] = even_in_log_snr) -> None:
        """steps: of four evaluations each; spacing: (start, end, steps) -> the steps + 1 angles between them."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if steps > MAX_STEPS:
            raise ValueError(f"steps must be at most {MAX_STEPS}, got {steps}")
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
    """The embedded pair of orders 5 and 4 with steps that keep each image's error of a step below a tolerance.

    An image's error is the root mean square over its pixels, and beside it the error of integral/D; both are held to
    atol + rtol |value| in each step, and errors of steps add up: over a whole flow to some ten times the tolerance
    (1e-4 bits/dim at 1e-5, measured). A batch takes common steps, small enough for all its images together, so a result
    depends on the batch by as much. Below about 1e-6 float32's own rounding is in the way of a float32 network, and
    the steps become many. The state is float64 on the host.

    Dormand & Prince, "A family of embedded Runge-Kutta formulae" (1980), as scipy's RK45.
    """

    def __init__(self, rtol: float, atol: float) -> None:
        if rtol <= 0 or atol <= 0:
            raise ValueError(f"rtol and atol must be positive, got {rtol} and {atol}")
        self.rtol = rtol
        self.atol = atol

    def __call__(self, slope: Slope, z: Tensor, start: float, end: float) -> Solution:
        """Raises ValueError where the slope is not finite, or no step is small enough."""
        images, pixels, dims = len(z), z.numel(), z[0].numel()

        def right_hand_side(angle: float, state: np.ndarray) -> np.ndarray:
            v, rate = slope(torch.from_numpy(state[:pixels]).reshape(z.shape).to(z), angle)
            flat = torch.cat([v.cpu().double().flatten(), rate.cpu().double() / dims]).numpy()
            if not np.isfinite(flat).all():
                raise ValueError(f"the flow is not finite at σ/α = {math.tan(angle):.3g}")
            return flat

        # scipy's norm is the root mean square over the whole state: with these shares its square is the sum over
        # images of each one's own, so that no image hides behind the others, nor the integral behind the pixels
        shares = np.sqrt(np.repeat([dims, 1.0], [pixels, images]) / (pixels + images))
        state = np.concatenate([z.cpu().double().flatten().numpy(), np.zeros(images)])
        tolerances = {"rtol": self.rtol * shares, "atol": self.atol * shares}
        solved = solve_ivp(right_hand_side, (start, end), state, method="RK45", t_eval=[end], **tolerances)
        if not solved.success:
            raise ValueError(f"no solution within rtol {self.rtol:g} and atol {self.atol:g}: {solved.message}")
        last = torch.from_numpy(solved.y[:, -1].copy())
        return Solution(last[:pixels].reshape(z.shape), dims * last[pixels:], int(solved.nfev))
