"""Parameterizations: the mix a x + b ε of clean image and noise that the network predicts.

Together with x_t = α x + σ ε the output determines both: with the determinant d = a σ − b α,

    x̂ = (σ output − b x_t)/d        ε̂ = (a x_t − α output)/d
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel, cast_to


class Parameterization(ABC):
    """A mix (a, b), from which target, solution and gain follow. Coefficients are float64, images (B, C, H, W)."""

    @abstractmethod
    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(a, b) at a level, of the level's shape."""

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """The factor of x_t in the network's input."""
        return torch.ones_like(level.alpha)

    def target(self, x: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """a x + b ε, the target of the network's output."""
        a, b = self.mix(level)
        return cast_to(a, x) * x + cast_to(b, x) * noise

    def solve(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(x̂, ε̂) from the network's output and x_t."""
        a, b = self.mix(level)
        d = self.determinant(level)
        x = cast_to(level.sigma / d, x_t) * output - cast_to(b / d, x_t) * x_t
        noise = cast_to(a / d, x_t) * x_t - cast_to(level.alpha / d, x_t) * output
        return x, noise

    def gain(self, level: NoiseLevel) -> Tensor:
        """The ratio of errors at fixed x_t: ‖target − output‖ = gain ‖x − x̂‖."""
        return self.determinant(level).abs() / level.sigma

    def determinant(self, level: NoiseLevel) -> Tensor:
        a, b = self.mix(level)
        return a * level.sigma - b * level.alpha


class Epsilon(Parameterization):
    """ε, the noise: a target of unit variance at every level, which does not determine x where α = 0.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 14. https://arxiv.org/abs/2006.11239
    """

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha)


class CleanImage(Parameterization):
    """x, the clean image: well defined at pure noise, but inaccurate for ε near clean.

    Ho et al. (2020), section 3.2.
    """

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level.alpha), torch.zeros_like(level.alpha)


class Velocity(Parameterization):
    """v = α ε − σ x: well conditioned at both ends of a variance-preserving path.

    Salimans & Ho, "Progressive Distillation" (2022), appendix D. https://arxiv.org/abs/2202.00512
    """

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return -level.sigma, level.alpha


class Score(Parameterization):
    """−ε/σ, the gradient of log q(x_t | x): unbounded towards clean.

    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2020), section 3.3.
    https://arxiv.org/abs/2011.13456
    """

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(level.alpha), -1 / level.sigma


class Flow(Parameterization):
    """ε − x, the velocity of the straight line from image to noise.

    Liu et al., "Flow Straight and Fast" (2022), equation 1; Lipman et al., "Flow Matching for Generative Modeling"
    (2022). https://arxiv.org/abs/2209.03003 https://arxiv.org/abs/2210.02747
    """

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(level.alpha), torch.ones_like(level.alpha)


class Karras(Parameterization):
    """F with x̂ = c_skip x_t + c_out F(c_in x_t): input and target of unit variance at every level.

    With r² = α² s² + σ², the variance of x_t for data of standard deviation s:
    c_skip = α s²/r², c_out = σ s/r, c_in = 1/r, so that a = σ/(s r) and b = −α s/r. For α = 1 these are Karras et al.,
    "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), table 1; for s = 1 and preserved
    variance F is −v. https://arxiv.org/abs/2206.00364
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        """sigma_data: s, the standard deviation of the pixels in [−1, 1]."""
        if sigma_data <= 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.sigma_data = sigma_data

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        std = self._std(level)
        return level.sigma / (self.sigma_data * std), -level.alpha * self.sigma_data / std

    def input_scale(self, level: NoiseLevel) -> Tensor:
        return 1 / self._std(level)

    def _std(self, level: NoiseLevel) -> Tensor:
        return torch.hypot(level.alpha * self.sigma_data, level.sigma)
