"""Heun's sampler with churn is EDM's algorithm 2, step by step."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from noising.diffusion.grids import karras
from noising.diffusion.parameterizations import CleanImage
from noising.diffusion.samplers import Heun
from noising.diffusion.schedules import LogLinearSigma
from tests.diffusion.helpers import Crooked, denoiser_of, in_turn, normals
from tests.reference import edm

STEPS, TIMESTEPS = 18, 100


def crooked(x: edm.Array, sigma: float) -> edm.Array:
    """tests.diffusion.helpers.Crooked at λ = −2 log σ."""
    return np.tanh(0.7 * x + 0.2 * x[..., ::-1]) + 0.1 * np.cos(-2 * np.log(sigma) / 3)


@pytest.mark.parametrize("churn", [5.0, 7.0, 80.0])  # more than √2 − 1 a step from 7.5 on
@pytest.mark.parametrize("noise", [1.0, 1.007, 1.3])
def test_churned_steps_are_algorithm_2(churn: float, noise: float) -> None:
    """Between S_tmin and S_tmax within the schedule: outside it the sampler adds no noise, nor does the paper's."""
    schedule, given = LogLinearSigma(0.002, 80), edm.Churn(churn, 0.05, 50.0, noise)
    noises = normals(STEPS + 1, 4, 1, 3, 3)
    sampler = Heun(
        STEPS,
        partial(karras, timesteps=TIMESTEPS),
        None,
        churn=churn,
        churn_min=0.05,
        churn_max=50.0,
        churn_noise=noise,
    )
    ours = [point.x_t for point in sampler.path(denoiser_of(Crooked(), schedule, CleanImage()), in_turn(noises))]

    smallest = 0.002 * (80 / 0.002) ** (1 / TIMESTEPS)  # σ of the chain's first step
    sigma = edm.karras_grid(STEPS, smallest, 80)
    theirs = edm.stochastic_sampler(crooked, sigma, 80 * noises[0].numpy(), iter(noises[1:].numpy()), given)
    assert sum(0.05 <= level <= 50 for level in sigma) > 4
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-12, atol=1e-12)
