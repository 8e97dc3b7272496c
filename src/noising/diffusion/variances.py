"""The variance of a reverse step p(x_s | x_t): by the posterior's own c σ_s², by the forward step's c σ_t², or learned.

Ho et al. (2020), section 3.2: the first is best when the data is one point, the second when it is white noise. The one
that is best for a given denoiser is in `optimal_variance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noising.diffusion.levels import like
from noising.diffusion.transition import Transition

__all__ = ["FixedLarge", "FixedSmall", "Learned", "LearnedRange", "ReverseVariance"]


class ReverseVariance(ABC):
    """The log-variance of a reverse step: a line in what the network says of it, level where that says nothing."""

    outputs: int = 1
    """Network outputs per image channel: 1, or 2 where the variance is learned."""

    fitted: bool = False
    """Whether it is fitted to a trained denoiser, and so is not there yet while that trains."""

    @abstractmethod
    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        """(intercept, slope) of log Σ in the network's variance channels, float64, of the step's shape."""

    def log_variance(self, step: Transition, raw: Tensor | None) -> Tensor:
        """log Σ of p(x_s | x_t); raw: the network's variance channels (B, C, H, W), None where it has none."""
        intercept, slope = self.line(step)
        return intercept if raw is None else like(intercept, raw) + like(slope, raw) * raw


class FixedSmall(ReverseVariance):
    """c σ_s², the posterior's own variance (β̃_t); the second step's where s is clean."""

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        return step.small_log_variance, torch.zeros_like(step.c)


class FixedLarge(ReverseVariance):
    """c σ_t², the forward step's variance (β_t); the second step's posterior variance where s is clean."""

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        large = torch.where(step.earlier.sigma > 0, step.large_log_variance, step.first_log_variance)
        return large, torch.zeros_like(step.c)


class Learned(ReverseVariance):
    """The network's second output is log Σ itself."""

    outputs = 2

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(step.c), torch.ones_like(step.c)


class LearnedRange(ReverseVariance):
    """log Σ = f log c σ_t² + (1 − f) log c σ_s² with f = (v + 1)/2, v the network's second output, not held to [−1, 1].

    The ends are where f is 0 and 1, no limits: the best variance may lie outside. Where s is clean the second step's
    posterior variance stands at f = 0, the forward variance itself at f = 1. Nichol & Dhariwal, "Improved DDPM" (2021),
    equation 15. https://arxiv.org/abs/2102.09672
    """

    outputs = 2

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        small, large = step.small_log_variance, step.large_log_variance
        return (small + large) / 2, (large - small) / 2
