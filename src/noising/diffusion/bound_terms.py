"""What an estimator of the bound averages: the terms of one model, or the difference of two models' terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from noising.diffusion.bound import decoder_floor, prior_term, step_terms
from noising.diffusion.decoders import Decoder
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.transition import Chain

__all__ = ["BoundTerms", "Difference", "ModelTerms", "Term"]


class Term(NamedTuple):
    """One evaluation of the network, each (B,)."""

    nats: Tensor
    """L_t, at step 1 L_0."""
    error: Tensor
    """‖x − x̂‖²/D, the distortion of what is known at this step."""


class BoundTerms(ABC):
    """The terms of a bound over the steps 1..T, step 1 the decoder's."""

    timesteps: int

    @abstractmethod
    def prior(self, x: Tensor) -> Tensor:
        """L_T, (B,) nats, exact. x: (B, C, H, W) in [−1, 1]."""

    @abstractmethod
    def floor(self, x: Tensor, noise: Tensor) -> Tensor:
        """The L_0 of a network that knows x, (B,) nats: what the schedule and the decoder cost by themselves."""

    @abstractmethod
    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        """The terms at a step of each image's own, steps (B,) on the host, with noise of x's shape."""


class ModelTerms(BoundTerms):
    """Those of a denoiser on a chain that ends in a decoder."""

    def __init__(self, denoiser: Denoiser, chain: Chain, decoder: Decoder, clip: float | None = None) -> None:
        """clip: x̂ is kept in [−clip, clip], which changes the model that is bounded."""
        self.denoiser = denoiser
        self.chain = chain
        self.decoder = decoder
        self.clip = clip
        self.timesteps = len(chain)

    def prior(self, x: Tensor) -> Tensor:
        return prior_term(self.chain, x)

    def floor(self, x: Tensor, noise: Tensor) -> Tensor:
        return decoder_floor(self.denoiser.variance, self.chain, x, noise, self.decoder)

    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        level = self.chain.level(steps)
        x_t = level.perturb(x, noise)
        prediction = self.denoiser.at(x_t, level, self.clip, class_label)
        nats = step_terms(self.denoiser, self.chain, x, x_t, steps, prediction, self.decoder)
        return Term(nats, (prediction.x - x).square().flatten(1).mean(1))


class Difference(BoundTerms):
    """One model's terms less another's, on the same images, steps and noise: what both find hard cancels."""

    def __init__(self, first: BoundTerms, second: BoundTerms) -> None:
        """Raises ValueError unless both are sums over the same number of steps."""
        if first.timesteps != second.timesteps:
            raise ValueError(f"bounds of {first.timesteps} and of {second.timesteps} steps have no steps to pair")
        self.first = first
        self.second = second
        self.timesteps = first.timesteps

    def prior(self, x: Tensor) -> Tensor:
        return self.first.prior(x) - self.second.prior(x)

    def floor(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.first.floor(x, noise) - self.second.floor(x, noise)

    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        first, second = (terms.at(x, steps, noise, class_label) for terms in (self.first, self.second))
        return Term(first.nats - second.nats, first.error - second.error)
