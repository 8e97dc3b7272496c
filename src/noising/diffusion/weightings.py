"""How much each noise level counts in the regression: functions (level, gain) -> weight on the output's squared error.

gain is the parameterization's: gain² turns the squared error of x̂ into that of the output, so a weight w on the
error of x̂ is w/gain² here. Weights are float64, of the level's shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noising.diffusion.schedules import NoiseLevel

__all__ = ["min_snr", "snr", "uniform"]


def uniform(level: NoiseLevel, gain: Tensor) -> Tensor:
    """1 on the network's own output: the simplified loss of DDPM for ε. Ho et al. (2020), equation 14."""
    return torch.ones_like(gain)


def snr(level: NoiseLevel, gain: Tensor) -> Tensor:
    """α²/σ² on x̂, that is 1 on ε̂, whatever the network predicts. Salimans & Ho (2022), section 4."""
    return level.log_snr.exp() / gain**2


def min_snr(level: NoiseLevel, gain: Tensor, limit: float = 5.0) -> Tensor:
    """min(α²/σ², limit) on x̂: no level near clean crowds out the others.

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting" (2023). https://arxiv.org/abs/2303.09556
    """
    return level.log_snr.exp().clamp(max=limit) / gain**2
