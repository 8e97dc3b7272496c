"""The weight of a training at each λ: the density of its times, and the weight of its loss."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel, Straight
from noising.diffusion.objectives import Objective, in_space_of
from noising.diffusion.parameterizations import CleanImage, Epsilon, Flow, Parameterization, Velocity
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


class ComparisonWeight(NamedTuple):
    """The weight (K,) of the error of what is predicted, where the plain squared error is taken of what is compared."""

    predicted: str
    compared: str
    weight: Tensor


@torch.no_grad()
def nine_comparisons(schedule: Schedule, level: NoiseLevel) -> Iterator[ComparisonWeight]:
    """The nine losses of a network that predicts x, ε or v, compared as x, ε or v, at levels of fields (K, 1, 1, 1).

    v is the velocity of the schedule's path: ε − x on a straight one, else α ε − σ x. Li & He, "Back to Basics: Let
    Denoising Generative Models Denoise" (2025), table 1. https://arxiv.org/abs/2511.13720
    """
    velocity = Flow() if isinstance(schedule.geometry, Straight) else Velocity()
    kinds: dict[str, Parameterization] = {"x": CleanImage(), "ε": Epsilon(), "v": velocity}
    for predicted, own in kinds.items():
        for compared, other in kinds.items():
            yield ComparisonWeight(predicted, compared, in_space_of(other)(level, own.gain(level)).flatten())
