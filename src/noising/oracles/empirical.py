"""The uniform distribution over N given images: a model that memorized them would have its optimal denoiser."""

import math

import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel, cast_to
from noising.oracles.oracle import Oracle


class Empirical(Oracle):
    """The uniform distribution over N distinct images: E[x | x_t] is their mean, weighted by exp(−‖x_t − α x_n‖²/2σ²).

    The bound of its denoiser falls to log(N)/D nats per dimension as the steps become finer, for any images.
    """

    def __init__(self, images: Tensor) -> None:
        """images: (N, C, H, W). Raises ValueError if two are equal."""
        super().__init__()
        if len(torch.unique(images.flatten(1), dim=0)) < len(images):
            raise ValueError("the images of an empirical distribution must be distinct")
        self.images = images

    @property
    def entropy(self) -> float:
        return math.log(len(self.images)) / self.images[0].numel()

    def clean(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        # in float64: with little noise the exponents are large and their differences small
        rows, seen = self.images.to(x_t.device).double().flatten(1), x_t.double()
        alpha, sigma = cast_to(level.alpha, seen), cast_to(level.sigma, seen)
        # ‖x_t − α x_n‖² without ‖x_t‖², which all n share
        fit = (alpha / sigma**2 * seen).flatten(1) @ rows.T
        size = (0.5 * (alpha / sigma) ** 2).reshape(-1, 1) * rows.square().sum(1)
        return (torch.softmax(fit - size, 1) @ rows).reshape(x_t.shape).to(x_t)

    def error(self, level: NoiseLevel) -> Tensor:
        """Raise NotImplementedError: the error has no closed form; `Denoiser.fit_variance` measures it."""
        raise NotImplementedError("the error of an empirical distribution's denoiser has no closed form: measure it")
