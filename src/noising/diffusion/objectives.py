"""What training descends: pure functions of (x, t, ε) and a denoiser, one value per image.

The times and the noise are drawn outside, so that a loss can be compared number by number with another implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.schedules import NoiseLevel, like

__all__ = ["Objective", "Regression", "Weighting"]

Weighting = Callable[[NoiseLevel, Tensor], Tensor]


class Objective(nn.Module, ABC):
    """A training objective."""

    @abstractmethod
    def forward(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None
    ) -> dict[str, Tensor]:
        """Named terms, each (B,); "loss" is the one that is descended.

        x, noise: (B, C, H, W); t: (B,) float64 on the host, in (0, 1]; condition: passed on to the denoiser.
        """


class Regression(Objective):
    """w(λ) ‖a x + b ε − output‖², the mean over pixels of the squared error in the network's own output space.

    With the uniform weighting this is the loss of DDPM (ε), of v-prediction, of EDM and of rectified flow, each with
    its parameterization. Ho et al. (2020), equation 14.
    """

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        self.weighting = weighting

    def forward(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None
    ) -> dict[str, Tensor]:
        level = denoiser.schedule(t)
        parameterization = denoiser.parameterization
        prediction = denoiser.at(level.perturb(x, noise), level, **condition)  # type: ignore[arg-type]
        target = parameterization.target(x, noise, level)
        error = (prediction.output - target).square().flatten(1).mean(1)
        weight = like(self.weighting(level, parameterization.gain(level)).flatten(), x)
        return {"loss": weight * error, "mse": error}
