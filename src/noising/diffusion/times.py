"""At which noise levels to train: how t is drawn in (0, 1] for a batch.

The times of one optimizer step are drawn for its whole global batch, from a generator that all ranks and micro-batches
share, and each takes its own slice: strata span the batch, and t does not depend on the number of devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noising.diffusion.schedules import Schedule

__all__ = ["Draw", "Grid", "LowDiscrepancy", "TimeSampler", "Uniform"]


class Draw(NamedTuple):
    """Where a micro-batch stands in the global batch of its optimizer step."""

    generator: np.random.Generator
    """Keyed by the step alone."""
    start: int
    size: int
    total: int

    def own(self, values: NDArray[np.float64]) -> Tensor:
        """This micro-batch's slice of one value per image of the global batch: (size,) float64."""
        return torch.from_numpy(values[self.start : self.start + self.size])


class TimeSampler(ABC):
    """A distribution of training times, with the weight that makes any average over it one over uniform t."""

    @abstractmethod
    def sample(self, draw: Draw, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """(t in (0, 1], importance weight), each (draw.size,) float64 on the host."""

    def observe(self, t: Tensor, loss: Tensor) -> None:  # noqa: B027
        """Learn from the unweighted losses (B,) that times t (B,) gave. Most samplers do not."""


class Uniform(TimeSampler):
    """t uniform in (0, 1], independent from image to image."""

    def sample(self, draw: Draw, schedule: Schedule) -> tuple[Tensor, Tensor]:
        t = draw.own(1 - draw.generator.random(draw.total))
        return t, torch.ones_like(t)


class Grid(TimeSampler):
    """t = i/T with i uniform in 1..T: training on the discrete chain, as DDPM does. Ho et al. (2020), algorithm 1."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def sample(self, draw: Draw, schedule: Schedule) -> tuple[Tensor, Tensor]:
        steps = draw.generator.integers(1, self.timesteps + 1, draw.total)
        t = draw.own(steps / self.timesteps)
        return t, torch.ones_like(t)


class LowDiscrepancy(TimeSampler):
    """One t in each of the batch's equal strata, shuffled: uniform, and far steadier from batch to batch.

    Kingma et al., "Variational Diffusion Models" (2021), appendix I.1. https://arxiv.org/abs/2107.00630
    """

    def sample(self, draw: Draw, schedule: Schedule) -> tuple[Tensor, Tensor]:
        strata = draw.generator.permutation(draw.total)
        t = draw.own((strata + 1 - draw.generator.random()) / draw.total)
        return t, torch.ones_like(t)
