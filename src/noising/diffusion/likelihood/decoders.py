"""Decoders p(x_0 | x_1): the last step of the reverse chain, from a Gaussian to a probability of grey levels."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noising.diffusion.gaussian import Gaussian, per_image
from noising.diffusion.levels import NoiseLevel, cast_to


class Decoder(ABC):
    """The observation model at the end of the reverse chain.

    unit: of the resulting bound; uses_network: whether it reads the last reverse step, or x_1 and its level alone.
    """

    unit: str = "bits/dim"
    uses_network: bool = True

    @abstractmethod
    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        """log p(x_0 | x_1) of x (B, C, H, W): (B,) nats.

        reverse: Gaussian of the last reverse step; x_1, level: the image that it starts from, and its noise level.
        """


class GreyLevelDecoder(Decoder, ABC):
    """A distribution over grey levels, evenly spaced from −1 to 1."""

    def __init__(self, levels: int = 256) -> None:
        """levels: number of grey levels L; raises ValueError for fewer than 2."""
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels


class DiscretizedGaussian(GreyLevelDecoder):
    """The Gaussian's mass in the bin of width 2/(L − 1) around each grey level; the outer bins extend to infinity.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 13, with the exact normal distribution
    function. https://arxiv.org/abs/2006.11239
    """

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        lower, upper, grey = _bin_edges(x, reverse, self.levels)
        lower = torch.where(grey <= 0, -torch.inf, lower)
        upper = torch.where(grey >= self.levels - 1, torch.inf, upper)
        above = lower + upper > 0
        # mirror into the lower tail, where differences of the distribution function keep their digits
        lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
        log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        return per_image(log_upper + torch.log(-torch.expm1(log_lower - log_upper))).to(x.dtype)


class TanhDiscretizedGaussian(GreyLevelDecoder):
    """`DiscretizedGaussian` with the reference implementations' approximation of the distribution function.

    It is ½(1 + tanh(√(2/π) (z + 0.044715 z³))), masses clamped to 1e-12: its error is at most 1.8e-4, but a factor of
    0.16 in the tail at z = −5. Only for comparison with numbers from improved DDPM's code and its descendants.
    """

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        *edges, grey = _bin_edges(x, reverse, self.levels)
        lower, upper = (0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) for z in edges)
        mass = torch.where(grey <= 0, upper, torch.where(grey >= self.levels - 1, 1 - lower, upper - lower))
        return per_image(mass.clamp(min=1e-12).log()).to(x.dtype)


class SoftmaxGaussian(GreyLevelDecoder):
    """p(v | x_1) ∝ N(x_1; α_1 v, σ_1²) over the grey levels v, from x_1 alone, without the network.

    The exact posterior of a pixel whose grey levels are equally likely. Kingma et al., "Variational Diffusion Models"
    (2021), section 3.3. https://arxiv.org/abs/2107.00630
    """

    uses_network = False

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        precise = _precise(x)
        seen, alpha = x_1.to(precise), cast_to(level.alpha, x_1.to(precise))
        rate = cast_to(level.sigma**-2, seen)

        def log_density(value: Tensor | float) -> Tensor:
            return -0.5 * (seen - alpha * value) ** 2 * rate

        total = torch.full_like(seen, -torch.inf)
        for grey in range(self.levels):  # one at a time: together they would take L times the memory
            total = torch.logaddexp(total, log_density(2 * grey / (self.levels - 1) - 1))
        return per_image(log_density(x.to(precise)) - total).to(x.dtype)


class PlainGaussian(Decoder):
    """The density of the last reverse step, for real-valued data: a bound on −log of a density."""

    unit = "bits/dim of a density, not to be compared with those of grey levels"

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        return reverse.log_prob(x)


def _precise(x: Tensor) -> torch.dtype:
    """float64, where x's device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _bin_edges(x: Tensor, reverse: Gaussian, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper edge of each pixel's bin, in standard deviations from the mean, and its grey level, from 0."""
    precise = _precise(x)
    centred = x.to(precise) - reverse.mean.to(precise)
    rate = cast_to((-reverse.log_variance / 2).exp(), centred)
    half_bin = 1 / (levels - 1)
    # the nearest level decides which bins are the outer ones, since x itself is rounded
    grey = ((x + 1) / 2 * (levels - 1)).round()
    return (centred - half_bin) * rate, (centred + half_bin) * rate, grey
