"""Weightings: functions (level, gain) -> weight of the squared error of the network's output at a noise level.

gain is the parameterization's: ‖target − output‖² = gain² ‖x − x̂‖², so a weight w on the error of x̂ is w/gain² here.
Since ‖ε − ε̂‖² = α²/σ² ‖x − x̂‖², a weight w on the error of ε̂ is w α²/(σ² gain²). Weights are float64, of the level's
shape.
"""

import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel


def uniform(level: NoiseLevel, gain: Tensor) -> Tensor:
    """1 on the network's output: the simplified loss of DDPM for ε. Ho et al. (2020), equation 14."""
    return torch.ones_like(gain)


def snr(level: NoiseLevel, gain: Tensor) -> Tensor:
    """α²/σ² on x̂, which is 1 on ε̂, for any parameterization. Salimans & Ho (2022), section 4."""
    return level.log_snr.exp() / gain**2


def min_snr(level: NoiseLevel, gain: Tensor, limit: float = 5.0) -> Tensor:
    """min(α²/σ², limit) on x̂: levels near clean do not dominate the others.

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting" (2023). https://arxiv.org/abs/2303.09556
    """
    return level.log_snr.exp().clamp(max=limit) / gain**2


def p2(level: NoiseLevel, gain: Tensor, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1/(k + α²/σ²)^γ on ε̂: less weight on imperceptible details.

    Choi et al., "Perception Prioritized Training of Diffusion Models" (2022), equation 8.
    https://arxiv.org/abs/2204.00227
    """
    ratio = level.log_snr.exp()
    return ratio / (k + ratio) ** gamma / gain**2


def edm(level: NoiseLevel, gain: Tensor, sigma_data: float = 0.5) -> Tensor:
    """α²/σ² + 1/sigma_data² on x̂; 1 on the output of `Karras` with the same sigma_data where α = 1.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), table 1.
    https://arxiv.org/abs/2206.00364
    """
    if sigma_data <= 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    return (level.log_snr.exp() + sigma_data**-2) / gain**2


def sigmoid(level: NoiseLevel, gain: Tensor, bias: float = 2.0) -> Tensor:
    """A sigmoid of bias − λ on ε̂: it falls with λ, so `WeightedBound` with it is a bound for noised data.

    Kingma & Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation" (2023), section 4.
    https://arxiv.org/abs/2303.00848
    """
    return torch.sigmoid(bias - level.log_snr) * level.log_snr.exp() / gain**2
