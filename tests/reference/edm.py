"""EDM's stochastic sampler and its grid in float64 numpy: Karras et al. (2022), algorithm 2 and equation 5.

Nothing here comes from the package: the tests compare the two. Noise levels are those of x = x_0 + σ ε, and D(x, σ) is
the denoiser. https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Churn(NamedTuple):
    """S_churn, S_tmin, S_tmax and S_noise."""

    churn: float
    t_min: float
    t_max: float
    noise: float


def karras_grid(steps: int, smallest: float, largest: float, rho: float = 7.0) -> Array:
    """σ_0 = largest … σ_(N−1) = smallest, and σ_N = 0."""
    i = np.arange(steps)
    roots = largest ** (1 / rho) + i / (steps - 1) * (smallest ** (1 / rho) - largest ** (1 / rho))
    return np.append(roots**rho, 0.0)


def stochastic_sampler(
    denoise: Callable[[Array, float], Array], sigma: Array, x: Array, noises: Iterator[Array], churn: Churn
) -> list[Array]:
    """x after each step from x at σ_0; noises: standard normal, one for each step that adds any."""
    steps, path = len(sigma) - 1, []
    for now, then in itertools.pairwise(sigma):
        gamma = min(churn.churn / steps, math.sqrt(2) - 1) if churn.t_min <= now <= churn.t_max else 0.0
        raised = now + gamma * now
        if gamma:
            x = x + math.sqrt(raised**2 - now**2) * churn.noise * next(noises)
        slope = (x - denoise(x, raised)) / raised
        euler = x + (then - raised) * slope
        if then:
            slope_there = (euler - denoise(euler, then)) / then
            euler = x + (then - raised) * (slope + slope_there) / 2
        x = euler
        path.append(x)
    return path
