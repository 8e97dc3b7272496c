"""Samplers: how an image is drawn from a denoiser, step by step along a grid of times.

A step of those here is a weighted sum, and its weights are host numbers, made once for the whole grid:

    x_s = keep x_t + take x̂ + again x̂' + e^(log_std + per_raw v) z

x̂' is the step before's x̂, v what the network says of the variance, z noise. Noise comes from outside, so image number i
is the same image wherever and with whatever others it is drawn.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import NoiseLevel, as_scalars
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Chain, Transition

__all__ = ["DDIM", "DPMPP2M", "Ancestral", "Heun", "PathPoint", "Sampler", "StepWeights", "WeightedSum"]


MAX_STEPS = 1_000_000
"""Of a grid, as of a chain: all their weights lie in memory."""


class PathPoint(NamedTuple):
    """Where the reverse process stands after a step, each (B, C, H, W)."""

    x_t: Tensor
    clean: Tensor
    """x̂ as the step's denoiser saw it."""


class Sampler(ABC):
    """Steps of a grid taken from noise to an image."""

    def __init__(
        self,
        steps: int,
        grid: Callable[[int, Schedule], Tensor],
        clip: float | None = 1.0,
        clip_quantile: float | None = None,
    ) -> None:
        """steps: of the grid; grid: where they lie; clip: x̂ is kept in [−clip, clip].

        clip_quantile: an image whose |x̂| has this quantile beyond clip is kept within that quantile and scaled back to
        clip, which leaves it its contrasts: dynamic thresholding. Saharia et al., "Photorealistic Text-to-Image
        Diffusion Models with Deep Language Understanding" (2022), section 2.3. https://arxiv.org/abs/2205.11487
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if steps > MAX_STEPS:
            raise ValueError(f"steps must be at most {MAX_STEPS}, got {steps}")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be positive or null, got {clip}")
        if clip_quantile is not None and (clip is None or not 0 < clip_quantile <= 1):
            raise ValueError(f"clip_quantile must be in (0, 1] and needs a clip, got {clip_quantile} and clip {clip}")
        self.steps = steps
        self.grid = grid
        self.clip = clip
        self.clip_quantile = clip_quantile

    def chain(self, schedule: Schedule) -> Chain:
        """The steps this sampler takes on a schedule."""
        return Chain(schedule, self.grid(self.steps, schedule))

    @abstractmethod
    def path(
        self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None
    ) -> Iterator[PathPoint]:
        """Every step from x_T to the image. noise: gives standard normal noise (B, C, H, W), x_T's first."""

    def evaluations(self, denoiser: Denoiser) -> int:
        """Of the network, an image."""
        return int(denoiser.evaluations(self.chain(denoiser.schedule).steps.later).sum())

    def __call__(self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), about [−1, 1]."""
        for point in self.path(denoiser, noise, class_label):
            image = point.x_t
        return image

    def _keep(self, x: Tensor) -> Tensor:
        """x̂ within its bounds; changes x itself."""
        if self.clip is None:
            return x
        if self.clip_quantile is None:
            return x.clamp_(-self.clip, self.clip)
        ordered = x.abs().flatten(1).sort(dim=1).values  # torch.quantile refuses large batches
        place = self.clip_quantile * (ordered.shape[1] - 1)
        below, above = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        bound = torch.lerp(below, above, place % 1).clamp_(min=self.clip).reshape(-1, 1, 1, 1)
        return x.clamp_(-bound, bound).mul_(self.clip / bound)


class StepWeights(NamedTuple):
    """What the terms of each step weigh: float64 in fields of (S,), that of the first step first."""

    keep: Tensor
    take: Tensor
    again: Tensor
    log_std: Tensor
    """−∞ where a step adds no noise."""
    per_raw: Tensor


class WeightedSum(Sampler, ABC):
    """A sampler whose step is a weighted sum of x_t, of x̂ as seen here and one step before, and of noise."""

    @abstractmethod
    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        """Of steps that follow one another, in fields of (S,), the last to be taken first."""

    def path(
        self, denoiser: Denoiser, noise: Callable[[], Tensor], class_label: Tensor | None = None
    ) -> Iterator[PathPoint]:
        x_t = denoiser.schedule.prior_std * noise()
        steps = self.chain(denoiser.schedule).steps
        look = denoiser.prepare(steps.later, x_t, class_label)
        keep, *others = self.weights(denoiser, steps)
        rows = list(zip(as_scalars(keep, x_t), *(field.tolist() for field in others), strict=True))
        before: Tensor | None = None
        for number in range(len(rows) - 1, -1, -1):
            keep, take, again, log_std, per_raw = rows[number]
            x, raw = look(number, x_t)
            x = self._keep(x)
            x_t = torch.mul(x_t, keep).add_(x, alpha=take)
            if again:
                assert before is not None
                x_t.add_(before, alpha=again)
            if log_std > -math.inf:
                if raw is None or not per_raw:
                    x_t.add_(noise(), alpha=math.exp(log_std))
                else:
                    x_t.addcmul_(noise(), torch.mul(raw, per_raw).add_(log_std).exp_())
            before = x
            yield PathPoint(x_t, x)


class Ancestral(WeightedSum):
    """x_s drawn from the reverse step's own Gaussian p(x_s | x_t), on any grid and with any variance.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), algorithm 2. https://arxiv.org/abs/2006.11239
    """

    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        intercept, slope = denoiser.variance.line(steps)
        noisy = steps.earlier.sigma > 0  # the last step's image is the mean
        log_std = torch.where(noisy, intercept / 2, -torch.inf)
        return StepWeights(*steps.mean_weights, torch.zeros_like(log_std), log_std, slope / 2)


class DDIM(WeightedSum):
    """x_s = α_s x̂ + √(σ_s² − v) ε̂ + √v z with v = η² c σ_s²: deterministic at η = 0, the ancestral step at η = 1.

    η = 0 is Euler's method in x/α against σ/α. Song et al., "Denoising Diffusion Implicit Models" (2020), equation 12.
    https://arxiv.org/abs/2010.02502
    """

    def __init__(
        self,
        steps: int,
        grid: Callable[[int, Schedule], Tensor],
        clip: float | None = 1.0,
        clip_quantile: float | None = None,
        eta: float = 0.0,
    ) -> None:
        super().__init__(steps, grid, clip, clip_quantile)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, got {eta}")
        self.eta = eta

    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        t, s = steps.later, steps.earlier
        variance = self.eta**2 * steps.posterior_variance
        keep = (s.sigma**2 - variance).sqrt() / t.sigma  # ε̂ = (x_t − α_t x̂)/σ_t
        zero = torch.zeros_like(keep)
        return StepWeights(keep, s.alpha - keep * t.alpha, zero, variance.log() / 2, zero)


class DPMPP2M(WeightedSum):
    """DPM-Solver++(2M): x̂ in λ, extrapolated from this step's and the last one's; or the SDE's own second-order step.

    With h = λ_s/2 − λ_t/2 and D the extrapolated x̂, x_s = (σ_s/σ_t) x_t + α_s (1 − e^−h) D; stochastic: x_s =
    (σ_s/σ_t) e^−h x_t + α_s (1 − e^−2h) D + σ_s √(1 − e^−2h) z. One network evaluation a step. From α_t = 0, and to
    clean, a step is of first order, DDIM's. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
    Probabilistic Models" (2022), algorithm 2, appendix A. https://arxiv.org/abs/2211.01095
    """

    def __init__(
        self,
        steps: int,
        grid: Callable[[int, Schedule], Tensor],
        clip: float | None = 1.0,
        clip_quantile: float | None = None,
        stochastic: bool = False,
    ) -> None:
        super().__init__(steps, grid, clip, clip_quantile)
        self.stochastic = stochastic

    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        t, s = steps.later, steps.earlier
        h = (s.log_snr - t.log_snr) / 2
        distance = 2 * h if self.stochastic else h
        take = -s.alpha * torch.expm1(-distance)
        further = h[:-1] / (2 * h[1:])  # as far again as from the step before to here
        further = torch.cat([further.where(further.isfinite(), 0.0), torch.zeros_like(h[-1:])])
        keep = s.sigma / t.sigma * (torch.exp(-h) if self.stochastic else 1.0)
        variance = s.sigma**2 * -torch.expm1(-distance) if self.stochastic else torch.zeros_like(h)
        return StepWeights(keep, take * (1 + further), -take * further, variance.log() / 2, torch.zeros_like(h))


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
        look = denoiser.prepare(start, x_t, class_label)
        look_ahead = denoiser.prepare(chain.steps.later, x_t, class_label)
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
        return churn.tolist(), as_scalars(keep, x_t), (s.alpha - keep * t.alpha).tolist(), further.tolist()

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
