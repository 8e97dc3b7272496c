"""Whole paths of the solvers against those of `diffusers`: the same network, grid and x_T."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.grids import trailing
from noising.diffusion.noise_labels import DiscreteStep
from noising.diffusion.parameterizations import Epsilon
from noising.diffusion.samplers import DDIM, DPMPP2M, Heun, Sampler
from noising.diffusion.schedules import LinearBeta
from noising.diffusion.variances import FixedSmall
from tests.diffusion.conftest import in_turn, normals

T = 1000
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
SCHEDULE = LinearBeta(T)
GRID = partial(trailing, timesteps=T)


class Listener(nn.Module):
    """ε̂ by place and time, the same for both sides: their label and ours is the step from 0."""

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        t = noise_label.reshape(-1, 1, 1, 1).to(x) / T
        return torch.tanh(0.8 * x) * (0.3 + 0.5 * t) + 0.05 * torch.cos(5 * t)


def ours(sampler: Sampler, noises: Tensor) -> list[Tensor]:
    denoiser = Denoiser(Listener(), SCHEDULE, Epsilon(), FixedSmall(), DiscreteStep(T))
    return [point.x_t for point in sampler.path(denoiser, in_turn(noises))]


def said(x: Tensor, index: Tensor) -> Tensor:
    answer: Tensor = Listener()(x, torch.full((len(x),), float(index)))
    return answer


@pytest.mark.parametrize("clip", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim(eta: float, clip: float | None) -> None:
    """Clipped, with ε̂ derived again on their side too."""
    theirs = DDIMScheduler(T, clip_sample=clip is not None, **BETAS)
    theirs.set_timesteps(20)
    noises = normals(21, 2, 1, 3, 3)
    x = noises[0]
    points = ours(DDIM(20, GRID, clip, eta=eta), noises)
    for index, now, z in zip(theirs.timesteps, points, [*noises[1:20], torch.zeros_like(x)], strict=True):
        drawn = z if eta else None
        x = theirs.step(
            said(x, index), index, x, eta=eta, use_clipped_model_output=clip is not None, variance_noise=drawn
        ).prev_sample
        torch.testing.assert_close(now, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("stochastic", [False, True], ids=["ode", "sde"])
def test_dpmpp_2m(steps: int, stochastic: bool) -> None:
    """The midpoint form of both; their last step, to σ = 0, is of first order too. Theirs are float32 tables."""
    theirs = DPMSolverMultistepScheduler(
        T,
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        **BETAS,
    )
    theirs.set_timesteps(steps)
    noises = normals(steps + 1, 2, 1, 3, 3)
    x = noises[0]
    for number, (index, now) in enumerate(
        zip(theirs.timesteps, ours(DPMPP2M(steps, GRID, None, stochastic=stochastic), noises), strict=True)
    ):
        # what they draw is handed to them; in the last step it counts for nothing
        drawn = noises[number + 1] if stochastic and number + 1 < steps else torch.zeros_like(x)
        x = theirs.step(said(x, index), index, x, variance_noise=drawn if stochastic else None).prev_sample
        torch.testing.assert_close(now, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [5, 18])
def test_heun(steps: int) -> None:
    """Theirs are in x/α, and have no churn."""
    theirs = HeunDiscreteScheduler(T, **BETAS)
    theirs.set_timesteps(steps)
    noises = normals(1, 2, 1, 3, 3)
    chain = Heun(steps, GRID).chain(SCHEDULE)
    x = noises[0] / chain.level(steps).alpha
    looks = iter(theirs.timesteps)
    for step, now in zip(range(steps, 0, -1), ours(Heun(steps, GRID, None), noises), strict=True):
        for _ in range(2 if step > 1 else 1):
            index = next(looks)
            x = theirs.step(said(theirs.scale_model_input(x, index), index), index, x).prev_sample
        torch.testing.assert_close(now / chain.level(step - 1).alpha, x, rtol=1e-5, atol=1e-5)
