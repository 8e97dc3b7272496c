"""Samplers of second order: half the steps for the same image.

Both solve the probability flow, which is d(x/α)/d(σ/α) = ε̂: one by a second look at each step's end, the other by
remembering the step before. Where α_t = 0, and in the step that ends clean, they take the first-order step, DDIM's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import NoiseLevel
from noising.diffusion.samplers import PathPoint, Sampler
from noising.diffusion.schedules import Schedule

__all__ = ["DPMPP2M", "Heun"]


class Heun(Sampler):
    """Heun's method in x/α against σ/α, with fresh noise before each step where churn asks for it.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 2; without
    churn their algorithm 1. Two network evaluations a step, one in the last: 2 S − 1. https://arxiv.org/abs/2206.00364
    """

    def __init__(
        self,
        steps: int,
        grid: Callable[[int, Schedule], Tensor],
        clip: float | None = None,
        churn: float = 0.0,
        churn_min: float = 0.05,
        churn_max: float = 50.0,
        churn_noise: float = 1.0,
    ) -> None:
        """churn: S_churn, shared among all steps, added where σ/α lies within its ends; churn_noise: S_noise."""
        super().__init__(steps, grid, clip)
        if churn < 0:
            raise ValueError(f"churn must not be negative, got {churn}")
        if not 0 < churn_min <= churn_max:
            raise ValueError(f"churn_min must be positive and at most churn_max, got {churn_min} and {churn_max}")
        self.churn = churn
        self.churn_min = churn_min
        self.churn_max = churn_max
        self.churn_noise = churn_noise

    @property
    def evaluations(self) -> int:
        return 2 * self.steps - 1

    def path(
        self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None
    ) -> Iterator[PathPoint]:
        chain = self.chain(denoiser.schedule)
        x_t = denoiser.schedule.prior_std * noise()
        for step in range(len(chain), 0, -1):
            transition = chain[step]
            x_t, level = self._churned(denoiser.schedule, x_t, transition.later, noise)
            prediction = denoiser.at(x_t, level, self.clip, class_label)
            s = transition.earlier
            x_s = s.alpha * prediction.x + s.sigma * prediction.noise
            if s.sigma > 0 and level.alpha > 0:
                ahead = denoiser.at(x_s, s, self.clip, class_label)
                stride = s.sigma / s.alpha - level.sigma / level.alpha
                x_s = s.alpha * (x_t / level.alpha + stride / 2 * (prediction.noise + ahead.noise))
            x_t = x_s
            yield PathPoint(x_t, prediction.x)

    def _churned(
        self, schedule: Schedule, x_t: Tensor, level: NoiseLevel, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, NoiseLevel]:
        """x at a level up to √2 times as noisy: the noise of the way there is added, as the forward process would."""
        ratio = float(level.sigma / level.alpha) if level.alpha > 0 else math.inf
        gain = min(self.churn / self.steps, math.sqrt(2) - 1) if self.churn_min <= ratio <= self.churn_max else 0.0
        log_snr = level.log_snr - 2 * math.log1p(gain)
        if not gain or log_snr < schedule.log_snr(torch.ones_like(log_snr)):
            return x_t, level
        alpha, sigma = schedule.scales(log_snr)
        added = self.churn_noise * alpha * ((sigma / alpha) ** 2 - ratio**2).sqrt()
        return x_t * (alpha / level.alpha) + added * noise(), NoiseLevel(schedule.time(log_snr), log_snr, alpha, sigma)


class DPMPP2M(Sampler):
    """DPM-Solver++(2M): x̂ in λ, extrapolated from this step's and the last one's; or the SDE's own second-order step.

    With h = λ_s/2 − λ_t/2 and D the extrapolated x̂, x_s = (σ_s/σ_t) x_t + α_s (1 − e^−h) D; stochastic: x_s =
    (σ_s/σ_t) e^−h x_t + α_s (1 − e^−2h) D + σ_s √(1 − e^−2h) z. One network evaluation a step. Lu et al.,
    "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (2022), algorithm 2, appendix A.
    https://arxiv.org/abs/2211.01095
    """

    def __init__(
        self,
        steps: int,
        grid: Callable[[int, Schedule], Tensor],
        clip: float | None = 1.0,
        stochastic: bool = False,
    ) -> None:
        super().__init__(steps, grid, clip)
        self.stochastic = stochastic

    def path(
        self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None
    ) -> Iterator[PathPoint]:
        chain = self.chain(denoiser.schedule)
        x_t = denoiser.schedule.prior_std * noise()
        before: Tensor | None = None
        h_before = math.nan
        for step in range(len(chain), 0, -1):
            t, s = chain.level(step), chain.level(step - 1)
            x = denoiser.at(x_t, t, self.clip, class_label).x
            h = float(s.log_snr - t.log_snr) / 2
            extrapolated = x
            if before is not None and math.isfinite(h) and math.isfinite(h_before):
                extrapolated = x + h / (2 * h_before) * (x - before)
            distance = 2 * h if self.stochastic else h
            kept = s.sigma / t.sigma * (math.exp(-h) if self.stochastic else 1.0)
            x_t = kept * x_t - s.alpha * math.expm1(-distance) * extrapolated
            if self.stochastic and s.sigma > 0:
                x_t = x_t + s.sigma * math.sqrt(-math.expm1(-distance)) * noise()
            before, h_before = x, h
            yield PathPoint(x_t, x)
