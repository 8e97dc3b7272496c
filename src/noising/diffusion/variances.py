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
    """The log-variance of a reverse step."""

    outputs: int = 1
    """Network outputs per image channel: 1, or 2 where the variance is learned."""

    fitted: bool = False
    """Whether it is fitted to a trained denoiser, and so is not there yet while that trains."""

    @abstractmethod
    def log_variance(self, step: Transition, raw: Tensor | None) -> Tensor:
        """log Σ of p(x_s | x_t); raw: the network's variance channels (B, C, H, W), None where it has none."""


class FixedSmall(ReverseVariance):
    """c σ_s², the posterior's own variance (β̃_t); the second step's where s is clean."""

    def log_variance(self, step: Transition, raw: Tensor | None) -> Tensor:
        return step.small_log_variance


class FixedLarge(ReverseVariance):
    """c σ_t², the forward step's variance (β_t); the second step's posterior variance where s is clean."""

    def log_variance(self, step: Transition, raw: Tensor | None) -> Tensor:
        return torch.where(step.earlier.sigma > 0, step.large_log_variance, step.first_log_variance)


class Learned(ReverseVariance):
    """The network's second output is log Σ itself."""

    outputs = 2

    def log_variance(self, step: Transition, raw: Tensor | None) -> Tensor:
        assert raw is not None
        return raw


class LearnedRange(ReverseVariance):
    """log Σ = f log c σ_t² + (1 − f) log c σ_s² with f = (v + 1)/2, v the network's second output, not held to [−1, 1].

    The ends are where f is 0 and 1, no limits: the best variance may lie outside. Where s is clean the second step's
    posterior variance stands at f = 0, the forward variance itself at f = 1. Nichol & Dhariwal, "Improved DDPM" (2021),
    equation 15. https://arxiv.org/abs/2102.09672
    """

    outputs = 2

    def log_variance(self, step: Transition, raw: Tensor | None) -> Tensor:
        assert raw is not None
        small, large = like(step.small_log_variance, raw), like(step.large_log_variance, raw)
        return small + (raw + 1) / 2 * (large - small)
