"""Schedules made from another schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noising.diffusion.levels import VariancePreserving
from noising.diffusion.schedules import Schedule

__all__ = ["ResolutionShift", "ZeroTerminalSNR"]


class ZeroTerminalSNR(Schedule):
    """Moves and stretches a schedule's √ᾱ so that nothing of the image is left at t = 1: λ(1) = −∞.

        √ᾱ'(t) = (√ᾱ(t) − √ᾱ(1))/(1 − √ᾱ(1)),    √ᾱ = √sigmoid(λ)

    Clean stays clean; the paper holds √ᾱ at the first step instead, which for T = 1000 differs by 3e-7. The network
    must not predict ε then, which says nothing of x at t = 1. Lin et al., "Common Diffusion Noise Schedules and Sample
    Steps Are Flawed" (2023), algorithm 1. https://arxiv.org/abs/2305.08891
    """

    def __init__(self, schedule: Schedule) -> None:
        """Raises ValueError for a variance-exploding schedule, which would need infinite noise."""
        super().__init__(schedule.geometry)
        if not math.isfinite(schedule.geometry.prior_std(torch.tensor(-math.inf, dtype=torch.float64))):
            raise ValueError("a variance-exploding schedule cannot end without signal: wrap one of another geometry")
        self.schedule = schedule

    def log_snr(self, t: Tensor) -> Tensor:
        root, lost = self._root(t)
        end, end_lost = self._root(torch.ones_like(t))
        kept, gone = (root - end) / end_lost, lost / end_lost
        return 2 * kept.clamp(min=0).log() - (gone * (1 + kept)).log()

    def _root(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and 1 − √ᾱ, each to its last digits."""
        alpha, sigma = VariancePreserving().scales(self.schedule.log_snr(t))
        return alpha, sigma**2 / (1 + alpha)


class ResolutionShift(Schedule):
    """Moves λ by 2 log(base_resolution/resolution): an image of more pixels needs more noise to hide what it shows.

    Hoogeboom et al., "simple diffusion: End-to-end diffusion for high resolution images" (2023), section 3.
    https://arxiv.org/abs/2301.11093
    """

    def __init__(self, schedule: Schedule, resolution: int, base_resolution: int = 64) -> None:
        super().__init__(schedule.geometry)
        if base_resolution < 1:
            raise ValueError(f"base_resolution must be at least 1, got {base_resolution}")
        self.schedule = schedule
        self.shift = 2 * math.log(base_resolution / resolution)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t) + self.shift

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr - self.shift)
