"""Heun's method: a second look at the end of each step, and so half the steps for the same image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import NoiseLevel, factors
from noising.diffusion.samplers import PathPoint, Sampler
from noising.diffusion.schedules import Schedule
from noising.diffusion.transition import Chain

__all__ = ["Heun"]


class Heun(Sampler):
    """Heun's method in x/α against σ/α, with fresh noise before each step where churn asks for it.

        Euler   x_s  = (σ_s/σ_t) x_t + (α_s − α_t σ_s/σ_t) x̂(x_t)
        Heun    x_s' = x_s + ½ α_s (σ_t α_s/(α_t σ_s) − 1) (x̂(x_s) − x̂(x_t))

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 2; without
    churn their algorithm 1. https://arxiv.org/abs/2206.00364

    Two network evaluations a step, one where a step is Euler's: the last, to clean, and those from where x_t says next
    to nothing of the image. There the second slope would weigh what the two looks differ by with half of
    (σ_t/α_t)/(σ_s/α_s), more than 1,000 in the first of 10 even steps of a cosine schedule.
    """

    _SILENT = -2 * math.log(1000)
    """λ below which a step is Euler's; Karras et al. begin at −2 log 80."""

    def __init__(
        self,
        steps: int,
        grid: Callable[[int, Schedule], Tensor],
        clip: float | None = 1.0,
        clip_quantile: float | None = None,
        churn: float = 0.0,
        churn_min: float = 0.05,
        churn_max: float = 50.0,
        churn_noise: float = 1.0,
    ) -> None:
        """churn: S_churn, shared among all steps, added where σ/α lies within its ends; churn_noise: S_noise."""
        super().__init__(steps, grid, clip, clip_quantile)
        if churn < 0:
            raise ValueError(f"churn must not be negative, got {churn}")
        if not 0 < churn_min <= churn_max:
            raise ValueError(f"churn_min must be positive and at most churn_max, got {churn_min} and {churn_max}")
        self.churn = churn
        self.churn_min = churn_min
        self.churn_max = churn_max
        self.churn_noise = churn_noise

    def evaluations(self, denoiser: Denoiser) -> int:
        steps = self.chain(denoiser.schedule).steps
        start = self._churned(denoiser.schedule, steps.later)
        second = denoiser.evaluations(steps.earlier)[self._corrected(steps.earlier, start)]
        return int(denoiser.evaluations(start).sum() + second.sum())

    def path(
        self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None
    ) -> Iterator[PathPoint]:
        x_t = denoiser.schedule.prior_std * noise()
        chain = self.chain(denoiser.schedule)
        start = self._churned(denoiser.schedule, chain.steps.later)
        look = denoiser.along(start, x_t, class_label)
        look_ahead = denoiser.along(chain.steps.later, x_t, class_label)
        churn, keep, take, further = self._weights(chain, start, x_t)
        for number in range(len(chain) - 1, -1, -1):
            kept, added = churn[number]
            if added:
                x_t = torch.mul(x_t, kept).add_(noise(), alpha=added)
            x = self._keep(look(number, x_t)[0])
            x_s = torch.mul(x_t, keep[number]).add_(x, alpha=take[number])
            if further[number]:
                ahead = self._keep(look_ahead(number - 1, x_s)[0])
                x_s.add_(ahead.sub_(x), alpha=further[number])
            x_t = x_s
            yield PathPoint(x_t, x)

    def _weights(
        self, chain: Chain, t: NoiseLevel, x_t: Tensor
    ) -> tuple[list[list[float]], tuple[Tensor, ...], list[float], list[float]]:
        """What weighs: x_t and the noise in the churn; x_t and x̂ in Euler's step; what x̂ changed by in Heun's."""
        before, s = chain.steps.later, chain.steps.earlier
        spread = (t.sigma / t.alpha) ** 2 - (before.sigma / before.alpha) ** 2
        added = torch.where(t.log_snr < before.log_snr, self.churn_noise * t.alpha * spread.clamp(min=0).sqrt(), 0.0)
        churn = torch.stack([t.alpha / before.alpha, added], dim=1)
        keep = s.sigma / t.sigma
        further = s.alpha * (s.alpha / (t.alpha * keep) - 1) / 2
        further = further.where(self._corrected(s, t), 0.0)
        return churn.tolist(), factors(keep, x_t), (s.alpha - keep * t.alpha).tolist(), further.tolist()

    def _corrected(self, s: NoiseLevel, t: NoiseLevel) -> Tensor:
        """Which steps have a second look."""
        return (s.sigma > 0) & (t.log_snr > self._SILENT)

    def _churned(self, schedule: Schedule, t: NoiseLevel) -> NoiseLevel:
        """Levels up to √2 times as noisy, where churn asks for it and the schedule goes as far."""
        ratio = (-t.log_snr / 2).exp()
        gain = min(self.churn / self.steps, math.sqrt(2) - 1)
        noisier = t.log_snr - 2 * math.log1p(gain)
        within = (self.churn_min <= ratio) & (ratio <= self.churn_max)
        log_snr = torch.where(within & (noisier >= schedule.log_snr(torch.ones_like(t.t)).cpu()), noisier, t.log_snr)
        if not gain or bool((log_snr == t.log_snr).all()):
            return t
        return NoiseLevel(
            torch.where(log_snr < t.log_snr, schedule.time(log_snr).cpu(), t.t), log_snr, *schedule.scales(log_snr)
        )
