"""Where a sampler steps: functions steps -> times (steps,), rising to 1; the step from the first of them ends at 0."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["quadratic", "uniform"]


def uniform(steps: int) -> Tensor:
    """t_i = i/S."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


def quadratic(steps: int) -> Tensor:
    """t_i = (i/S)²: finer near clean. Song et al., "Denoising Diffusion Implicit Models" (2020), appendix D.2."""
    return uniform(steps) ** 2
