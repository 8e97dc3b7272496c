"""p(x_0 | x_1): how the last reverse step, a Gaussian, becomes a probability of integer pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noising.diffusion.gaussian import Gaussian, per_image
from noising.diffusion.levels import NoiseLevel, cast_to

__all__ = ["Decoder", "DiscretizedGaussian", "PlainGaussian", "SoftmaxGaussian", "TanhDiscretizedGaussian"]


class Decoder(ABC):
    """The observation model that ends the reverse chain."""

    unit: str = "bits/dim"
    """Of a bound that ends in it."""

    @abstractmethod
    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        """log p(x_0 | x_1), (B,) nats; reverse: the last reverse step's Gaussian; level: that of x_1."""


class DiscretizedGaussian(Decoder):
    """The Gaussian's mass in the bin around each of the grey levels in [−1, 1]; the outer bins reach to infinity.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 13, with the exact normal distribution
    function. https://arxiv.org/abs/2006.11239
    """

    def __init__(self, levels: int = 256) -> None:
        """levels: the grey levels of a pixel, evenly spaced from −1 to 1; a bin is 2/(levels − 1) wide."""
        self.levels = _at_least_two(levels)

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        lower, upper, grey = _bin_edges(x, reverse, self.levels)
        lower = torch.where(grey <= 0, -torch.inf, lower)
        upper = torch.where(grey >= self.levels - 1, torch.inf, upper)
        above = lower + upper > 0
        # mirror into the lower tail, where differences of the distribution function keep their digits
        lower, upper = (
            torch.where(above, -upper, lower),
            torch.where(above, -lower, upper),
        )
        log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        return per_image(log_upper + torch.log(-torch.expm1(log_lower - log_upper))).to(x.dtype)


class TanhDiscretizedGaussian(Decoder):
    """`DiscretizedGaussian` with the distribution function as the reference implementations approximate it.

    ½(1 + tanh(√(2/π) (z + 0.044715 z³))), masses no less than 1e-12: off by 1.8e-4 at most, but by a factor of 0.16 in
    the tail at z = −5. For comparison with numbers measured by improved DDPM's code and its descendants only.
    """

    def __init__(self, levels: int = 256) -> None:
        """levels: as in `DiscretizedGaussian`."""
        self.levels = _at_least_two(levels)

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        *edges, grey = _bin_edges(x, reverse, self.levels)
        lower, upper = (_tanh_cdf(edge) for edge in edges)
        mass = torch.where(grey <= 0, upper, torch.where(grey >= self.levels - 1, 1 - lower, upper - lower))
        return per_image(mass.clamp(min=1e-12).log()).to(x.dtype)


class SoftmaxGaussian(Decoder):
    """p(v | x_1) ∝ N(x_1; α_1 v, σ_1²) over the grey levels v: what x_1 alone says, with no word of the network's.

    The exact posterior of a pixel whose grey levels are equally likely. Kingma et al., "Variational Diffusion Models"
    (2021), section 3.3. https://arxiv.org/abs/2107.00630
    """

    def __init__(self, levels: int = 256) -> None:
        """levels: the grey levels of a pixel, evenly spaced from −1 to 1."""
        self.levels = _at_least_two(levels)

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        precise = _precise(x)
        seen, alpha = x_1.to(precise), cast_to(level.alpha, x_1.to(precise))
        rate = cast_to(level.sigma**-2, seen)

        def log_density(value: Tensor | float) -> Tensor:
            return -0.5 * (seen - alpha * value) ** 2 * rate

        total = torch.full_like(seen, -torch.inf)
        for grey in range(self.levels):  # one at a time: all at once would be as many times the batch
            total = torch.logaddexp(total, log_density(2 * grey / (self.levels - 1) - 1))
        return per_image(log_density(x.to(precise)) - total).to(x.dtype)


class PlainGaussian(Decoder):
    """The last reverse step's density itself, for real-valued data: the bound is one on −log of a density."""

    unit = "bits/dim of a density, not to be compared with those of grey levels"

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        return reverse.log_prob(x)


def _at_least_two(levels: int) -> int:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    return levels


def _precise(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _bin_edges(x: Tensor, reverse: Gaussian, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """A pixel's bin in standard deviations from the mean, lower and upper edge, and the number of its grey level."""
    precise = _precise(x)
    centred = x.to(precise) - reverse.mean.to(precise)
    rate = cast_to((-reverse.log_variance / 2).exp(), centred)
    half_bin = 1 / (levels - 1)
    # the nearest level decides which bins are the outer ones: x itself may be off by a rounding
    grey = ((x + 1) / 2 * (levels - 1)).round()
    return (centred - half_bin) * rate, (centred + half_bin) * rate, grey


def _tanh_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
