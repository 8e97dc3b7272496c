"""Every training loss as one curve: what it weighs an error of ε̂ at each λ, and how often it looks there.

Whatever the schedule, parameterization, weighting and times, a loss that is a weighted squared error is

    ½ ∫ w(λ) E‖ε − ε̂‖²/D dλ,    w(λ) = 2 p(λ) gain² e^(−λ) weight

with p(λ) the density of the levels that are trained at and `weight` on the squared error of the output. The bound, in
nats, is w = 1. Kingma & Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation" (2023),
section 3 and table 1. https://arxiv.org/abs/2303.00848
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.objectives import Objective
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.times import TimeSampler

__all__ = ["LossWeights", "loss_weights"]


class LossWeights(NamedTuple):
    """Curves over t, each (K,)."""

    log_snr: Tensor
    density: Tensor
    """p(λ)."""
    weight: Tensor
    """w(λ)."""


@torch.no_grad()
def loss_weights(
    schedule: Schedule, parameterization: Parameterization, times: TimeSampler, objective: Objective, t: Tensor
) -> LossWeights:
    """w(λ) and p(λ) at times t (K,), inside (0, 1) where the schedule's ends are infinite."""
    level = schedule(t)
    gain = parameterization.gain(level)
    density = times.density(t, schedule) / schedule.log_snr_rate(t).abs()
    on_output = objective.weight(schedule, level, gain)
    on_noise = (on_output * gain**2 / level.log_snr.exp()).flatten()
    return LossWeights(level.log_snr.flatten(), density, 2 * density * on_noise)
