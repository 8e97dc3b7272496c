"""Noise levels of x_t = α x + σ ε, and the geometries, the lines in the (α, σ) plane on which they lie.

The coordinate of a level is the log signal-to-noise ratio λ = log α²/σ². A geometry maps λ to (α, σ); a schedule maps
time to λ.

Levels are float64 and on the host: a batch of them is small, their differences cancel, and some devices have no
float64. `cast_to` converts them where they meet an image. Only a learned schedule's levels are on the device of its
weights.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from noising.errors import require


def cast_to(coefficient: Tensor, x: Tensor) -> Tensor:
    """The coefficient in x's type and on x's device; a scalar is returned as it is, since it needs no cast."""
    return coefficient if coefficient.dim() == 0 else coefficient.to(x.device, x.dtype, non_blocking=True)


def as_scalars(coefficients: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Coefficients (S,) as S host scalars of x's type: a Python float takes twice as long to multiply a small image."""
    return coefficients.to("cpu", x.dtype).unbind()


class NoiseLevel(NamedTuple):
    """A noise level of x_t = alpha x + sigma ε.

    Each field is float64 on the host: (B, 1, 1, 1), one level per image, or a scalar, one for all.
    """

    t: Tensor
    log_snr: Tensor
    alpha: Tensor
    sigma: Tensor

    def perturb(self, x: Tensor, noise: Tensor) -> Tensor:
        """x_t = α x + σ ε in x's type, for x and noise (B, C, H, W)."""
        return cast_to(self.alpha, x) * x + cast_to(self.sigma, x) * noise


class Geometry(ABC):
    """A line in the (α, σ) plane, parameterized by λ with α²/σ² = e^λ."""

    @abstractmethod
    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of λ, each of λ's shape."""

    @abstractmethod
    def measure(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The left side of the line's equation f(α, σ) = 1."""

    def prior_std(self, log_snr_end: Tensor) -> float:
        """Standard deviation of p(x_T), given λ at t = 1."""
        return 1.0


class VariancePreserving(Geometry):
    """α² = sigmoid(λ), σ² = 1 − α²: data of unit variance keep it. Ho et al. (2020).

    With an image_scale s the images are multiplied by it before: (α/s)² + σ² = 1, with λ of the images as they were.
    """

    def __init__(self, image_scale: float = 1.0) -> None:
        require(image_scale > 0, f"image_scale must be positive, got {image_scale}")
        self.image_scale = image_scale
        self.shift = 2 * math.log(image_scale)
        """λ of the images less λ of the scaled ones."""

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        of_scaled = log_snr - self.shift
        return self.image_scale * torch.sigmoid(of_scaled).sqrt(), torch.sigmoid(-of_scaled).sqrt()

    def measure(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / self.image_scale) ** 2 + sigma**2


class VarianceExploding(Geometry):
    """α = 1, σ = e^(−λ/2): noise is only added. Song et al., "Score-Based Generative Modeling through SDEs" (2020).

    https://arxiv.org/abs/2011.13456
    """

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(log_snr), (-log_snr / 2).exp()

    def measure(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha

    def prior_std(self, log_snr_end: Tensor) -> float:
        """σ_T."""
        return float((-log_snr_end / 2).exp())


class Straight(Geometry):
    """α = sigmoid(λ/2), σ = 1 − α: a straight line from image to noise. Liu et al., "Flow Straight and Fast" (2022).

    https://arxiv.org/abs/2209.03003
    """

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)

    def measure(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha + sigma
