"""Whole trajectories: their law, their densities, and the bound as it is first written down."""

from __future__ import annotations

import pytest
import torch

from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.terms import variational_bound
from noising.diffusion.schedules import Cosine, LinearBeta, LogLinearSigma, Schedule
from noising.diffusion.trajectories import forward_log_prob, forward_trajectory, reverse_log_prob, trajectory_bound
from noising.diffusion.transitions import Chain
from tests.diffusion.helpers import Crooked, close, denoiser_of, epsilon_of, images, in_turn, normals, pair
from tests.reference import ddpm


@pytest.mark.parametrize("schedule", [LinearBeta(1000), Cosine(1000)], ids=["linear", "cosine"])
def test_step_by_step_has_the_closed_forms_mean_and_variance(schedule: LinearBeta | Cosine) -> None:
    """The mean is the trajectory of no noise, the variance the sum over steps of what each step's noise adds."""
    chain = Chain.uniform(schedule, 1000)
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    mean = forward_trajectory(chain, one, lambda: zero).flatten()
    variance = [0.0]
    for step in range(1, 1001):
        gaussian = chain[step].forward(one)
        variance.append(variance[-1] * gaussian.mean.item() ** 2 + gaussian.log_variance.exp().item())
    levels = [chain.level(step) for step in range(1001)]
    close(mean, torch.stack([level.alpha for level in levels]).numpy(), rtol=1e-10)
    close(
        torch.tensor(variance, dtype=torch.float64),
        torch.stack([level.sigma**2 for level in levels]).numpy(),
        rtol=1e-9,
    )


def test_drawn_step_by_step_is_the_closed_form_in_law() -> None:
    """40,000 trajectories of 50 steps: means and variances at every step within 4.5 standard errors."""
    chain = Chain.uniform(LinearBeta(50), 50)
    count, start = 40_000, 0.7
    path = forward_trajectory(
        chain, torch.full((count, 1, 1, 1), start, dtype=torch.float64), in_turn(normals(50, count, 1, 1, 1))
    )
    for step in range(1, 51):
        level = chain.level(step)
        drawn, sigma = path[step].flatten(), level.sigma.item()
        assert abs(drawn.mean().item() - level.alpha.item() * start) < 4.5 * sigma / count**0.5
        assert abs(drawn.var().item() / sigma**2 - 1) < 4.5 * (2 / count) ** 0.5


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_joint_densities_are_the_references(name: str) -> None:
    chain, reference = pair(name, 100)
    x, model = images(2), Crooked()
    noise = normals(100, 2, 1, 3, 3)
    path = forward_trajectory(chain, x, in_turn(noise))
    theirs = reference.forward_path(x.numpy(), noise.transpose(0, 1).numpy())
    close(path.transpose(0, 1), theirs, rtol=1e-9, atol=1e-11)
    close(forward_log_prob(chain, path), reference.log_forward_joint(theirs), rtol=1e-9)
    denoiser = denoiser_of(model, chain.schedule)
    reverse = ddpm.Reverse(
        epsilon_of(model, denoiser.parameterization, chain, False),
        reference.fixed_small,
        ddpm.discretized_gaussian(17),
    )
    decoder = DiscretizedGaussian(17)
    close(
        reverse_log_prob(denoiser, chain, path, decoder),
        reference.log_reverse_joint(theirs, reverse),
        rtol=1e-8,
    )
    close(
        trajectory_bound(denoiser, chain, path, decoder),
        reference.trajectory_bound(theirs, reverse),
        rtol=1e-7,
    )


@pytest.mark.parametrize("schedule", [Cosine(20), LogLinearSigma(0.05, 30.0)], ids=lambda s: type(s).__name__)
def test_trajectory_form_averages_to_the_sum_of_terms(schedule: Schedule) -> None:
    """L_VLB of one image, both ways, 4,000 draws each: equal within 4 standard errors, and those are small."""
    chain = Chain.uniform(schedule, 20)
    count, decoder = 4000, DiscretizedGaussian(17)
    denoiser = denoiser_of(Crooked(), chain.schedule)
    x = images(1).expand(count, 1, 3, 3)
    path = forward_trajectory(chain, x, in_turn(normals(20, count, 1, 3, 3, seed=1)))
    whole = trajectory_bound(denoiser, chain, path, decoder, clip=1.0)
    terms = variational_bound(denoiser, chain, x, decoder, in_turn(normals(20, count, 1, 3, 3, seed=2)), clip=1.0).total
    error = (whole.var() / count + terms.var() / count).sqrt().item()
    assert error < 0.02 * terms.mean().item()
    assert abs(whole.mean().item() - terms.mean().item()) < 4 * error
