"""Diagonal Gaussians: the distribution of every step of the forward and the reverse chain.

Log-densities and divergences are summed over an image's pixels: (B,), in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.levels import cast_to


def per_image(values: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return values.flatten(1).sum(1)


class Gaussian(NamedTuple):
    """N(mean, exp(log_variance)): mean (B, C, H, W); log_variance broadcasts to it."""

    mean: Tensor
    log_variance: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, in the mean's type."""
        return cast_to((self.log_variance / 2).exp(), self.mean)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std · noise, for standard normal noise of the mean's shape."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x) summed over pixels: (B,), nats."""
        square = (x - self.mean) ** 2 * cast_to((-self.log_variance).exp(), x)
        return per_image(-0.5 * (math.log(2 * math.pi) + cast_to(self.log_variance, x) + square))

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self ‖ other) summed over pixels: (B,), nats."""
        # the difference of logarithms is taken before the cast: both are often the same number
        log_ratio = self.log_variance - other.log_variance
        spread = cast_to(torch.expm1(log_ratio) - log_ratio, self.mean)
        shift = (self.mean - other.mean) ** 2 * cast_to((-other.log_variance).exp(), self.mean)
        return per_image(0.5 * (spread + shift))
