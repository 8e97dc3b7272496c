"""p(x_0 | x_1): how the last reverse step, a Gaussian, becomes a probability of integer pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noising.diffusion.gaussian import Gaussian, per_image
from noising.diffusion.schedules import like

__all__ = ["Decoder", "DiscretizedGaussian"]


class Decoder(ABC):
    """The observation model that ends the reverse chain."""

    @abstractmethod
    def log_prob(self, x: Tensor, reverse: Gaussian) -> Tensor:
        """log p(x_0 | x_1), (B,) nats; reverse: the last reverse step's Gaussian."""


class DiscretizedGaussian(Decoder):
    """The Gaussian's mass in the bin around each of the grey levels in [−1, 1]; the outer bins reach to infinity.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 13, with the exact normal distribution
    function. https://arxiv.org/abs/2006.11239
    """

    def __init__(self, levels: int = 256) -> None:
        """levels: the grey levels of a pixel, evenly spaced from −1 to 1; a bin is 2/(levels − 1) wide."""
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels

    def log_prob(self, x: Tensor, reverse: Gaussian) -> Tensor:
        precise = torch.float32 if x.device.type == "mps" else torch.float64
        centred = x.to(precise) - reverse.mean.to(precise)
        rate = like((-reverse.log_variance / 2).exp(), centred)
        half_bin = 1 / (self.levels - 1)
        # the nearest level decides which bins are open: x itself may be off by a rounding
        level = ((x + 1) / 2 * (self.levels - 1)).round()
        lower = torch.where(level <= 0, -torch.inf, (centred - half_bin) * rate)
        upper = torch.where(level >= self.levels - 1, torch.inf, (centred + half_bin) * rate)
        # mirror into the lower tail, where differences of the distribution function keep their digits
        lower, upper = (
            torch.where(centred > 0, -upper, lower),
            torch.where(centred > 0, -lower, upper),
        )
        log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        return per_image(log_upper + torch.log(-torch.expm1(log_lower - log_upper))).to(x.dtype)
