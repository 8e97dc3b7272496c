"""The weight of a training at each λ: the density of its times, and the weight of its loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.objectives import Objective
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.times import TimeSampler


class LossWeights(NamedTuple):
    """Density p(λ) of the training times and effective weight w(λ) on ½ ‖ε − ε̂‖², each (K,)."""

    log_snr: Tensor
    density: Tensor
    weight: Tensor


@torch.no_grad()
def loss_weights(
    schedule: Schedule, parameterization: Parameterization, times: TimeSampler, objective: Objective, t: Tensor
) -> LossWeights:
    """p(λ) and w(λ) at times t (K,), which must lie inside (0, 1) where the schedule's ends are infinite."""
    level = schedule(t)
    gain = parameterization.gain(level)
    density = times.density(t, schedule) / schedule.log_snr_rate(t).abs()
    on_noise = (objective.weight(schedule, level, gain) * gain**2 / level.log_snr.exp()).flatten()
    return LossWeights(level.log_snr.flatten(), density, 2 * density * on_noise)
