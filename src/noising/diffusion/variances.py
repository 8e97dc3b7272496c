"""The variance of a reverse step p(x_s | x_t): between the posterior's own c σ_s² and the forward step's c σ_t².

Ho et al. (2020), section 3.2: the first is best when the data is one point, the second when it is white noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noising.diffusion.transition import Transition

__all__ = ["FixedLarge", "FixedSmall", "ReverseVariance"]


class ReverseVariance(ABC):
    """The log-variance of a reverse step."""

    outputs: int = 1
    """Network outputs per image channel: 1, or 2 where the variance is learned."""

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
