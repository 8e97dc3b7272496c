"""Samplers: how an image is drawn from a denoiser, step by step along a grid of times.

Noise comes from outside, so image number i is the same image wherever and with whatever others it is drawn. The grid's
coefficients are host numbers, made once before the loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from noising.diffusion.denoiser import Denoiser, Prediction
from noising.diffusion.schedules import Schedule
from noising.diffusion.transition import Chain, Transition

__all__ = ["DDIM", "Ancestral", "PathPoint", "Sampler", "SingleStep"]


class PathPoint(NamedTuple):
    """Where the reverse process stands after a step, each (B, C, H, W)."""

    x_t: Tensor
    clean: Tensor
    """x̂ as the step's denoiser saw it."""


class Sampler(ABC):
    """Steps of a grid taken from noise to an image."""

    def __init__(self, steps: int, grid: Callable[[int, Schedule], Tensor], clip: float | None = 1.0) -> None:
        """steps: of the grid; grid: where they lie; clip: x̂ is kept in [−clip, clip]."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be positive or null, got {clip}")
        self.steps = steps
        self.grid = grid
        self.clip = clip

    @property
    def evaluations(self) -> int:
        """Of the network, an image."""
        return self.steps

    def chain(self, schedule: Schedule) -> Chain:
        """The steps this sampler takes on a schedule."""
        return Chain(schedule, self.grid(self.steps, schedule))

    @abstractmethod
    def path(
        self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None
    ) -> Iterator[PathPoint]:
        """Every step from x_T to the image. noise: gives standard normal noise (B, C, H, W), x_T's first."""

    def __call__(self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), about [−1, 1]."""
        for point in self.path(denoiser, noise, class_label):
            image = point.x_t
        return image


class SingleStep(Sampler, ABC):
    """A sampler that is its step: from x_t and one prediction of it, with no memory."""

    @abstractmethod
    def step(
        self,
        denoiser: Denoiser,
        transition: Transition,
        x_t: Tensor,
        prediction: Prediction,
        noise: Callable[[], Tensor],
    ) -> Tensor:
        """x_s from x_t (B, C, H, W); without noise where s is clean."""

    def path(
        self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None
    ) -> Iterator[PathPoint]:
        chain = self.chain(denoiser.schedule)
        x_t = denoiser.schedule.prior_std * noise()
        for step in range(len(chain), 0, -1):
            transition = chain[step]
            prediction = denoiser.at(x_t, transition.later, self.clip, class_label)
            x_t = self.step(denoiser, transition, x_t, prediction, noise)
            yield PathPoint(x_t, prediction.x)


class Ancestral(SingleStep):
    """x_s drawn from the reverse step's own Gaussian p(x_s | x_t), on any grid and with any variance.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), algorithm 2. https://arxiv.org/abs/2006.11239
    """

    def step(
        self,
        denoiser: Denoiser,
        transition: Transition,
        x_t: Tensor,
        prediction: Prediction,
        noise: Callable[[], Tensor],
    ) -> Tensor:
        reverse = denoiser.reverse(transition, x_t, prediction)
        return reverse.sample(noise()) if transition.earlier.sigma > 0 else reverse.mean


class DDIM(SingleStep):
    """x_s = α_s x̂ + √(σ_s² − v) ε̂ + √v z with v = η² c σ_s²: deterministic at η = 0, the ancestral step at η = 1.

    η = 0 is Euler's method in x/α against σ/α. Song et al., "Denoising Diffusion Implicit Models" (2020), equation 12.
    https://arxiv.org/abs/2010.02502
    """

    def __init__(
        self, steps: int, grid: Callable[[int, Schedule], Tensor], clip: float | None = 1.0, eta: float = 0.0
    ) -> None:
        super().__init__(steps, grid, clip)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, got {eta}")
        self.eta = eta

    def step(
        self,
        denoiser: Denoiser,
        transition: Transition,
        x_t: Tensor,
        prediction: Prediction,
        noise: Callable[[], Tensor],
    ) -> Tensor:
        s = transition.earlier
        variance = self.eta**2 * transition.posterior_variance
        x_s = s.alpha * prediction.x + (s.sigma**2 - variance).sqrt() * prediction.noise
        return x_s + variance.sqrt() * noise() if variance > 0 else x_s
