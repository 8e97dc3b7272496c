"""Samplers: how an image is drawn from a denoiser, step by step along a grid of times.

Most take steps that are weighted sums, with coefficients that are known for the whole grid before the first step:

    x_s = coef_x_t x_t + coef_x0 x̂ + coef_x0_prev x̂' + exp(log_std + log_std_slope v) z

x̂ is the denoiser's estimate at this step, x̂' that of the step before, v the network's variance channels and z standard
normal noise. `Heun` evaluates the denoiser twice a step and has a loop of its own.

Noise comes from outside, so that image i is the same image in any batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.grids import uniform
from noising.diffusion.levels import NoiseLevel, as_scalars
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Chain, Transition
from noising.errors import require

MAX_STEPS = 1_000_000  # upper limit of the steps of a grid: all their coefficients lie in memory
MIN_LOG_SNR = -2 * math.log(1000)  # λ below which a step of `Heun` is Euler's; Karras et al. begin at −2 log 80
NoiseSource = Callable[[], Tensor]  # a source of standard normal noise (B, C, H, W), new at each call


class PathPoint(NamedTuple):
    """State of the reverse process after a step, and x̂ as the step used it, each (B, C, H, W)."""

    x_t: Tensor
    clean: Tensor


@dataclass(eq=False)
class Sampler(ABC):
    """A rule for the steps of a grid from noise to an image.

    grid: (steps, schedule) -> their times (steps,), rising to at most 1; clip: x̂ is clamped to [−clip, clip], None for
    no limit; clip_quantile: quantile of |x̂| for dynamic thresholding: where it exceeds clip, the image is clamped to it
    and scaled back to clip, which preserves contrast. Saharia et al., "Photorealistic Text-to-Image Diffusion Models
    with Deep Language Understanding" (2022), section 2.3. https://arxiv.org/abs/2205.11487

    Raises ValueError for steps outside 1..MAX_STEPS, a clip that is not positive, or a clip_quantile outside (0, 1] or
    without a clip.
    """

    steps: int
    grid: Callable[[int, Schedule], Tensor] = uniform
    clip: float | None = 1.0
    clip_quantile: float | None = None

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        require(self.steps <= MAX_STEPS, f"steps must be at most {MAX_STEPS}, got {self.steps}")
        require(self.clip is None or self.clip > 0, f"clip must be positive or null, got {self.clip}")
        message = f"clip_quantile must be in (0, 1] and needs a clip, got {self.clip_quantile} and clip {self.clip}"
        require(self.clip_quantile is None or (self.clip is not None and 0 < self.clip_quantile <= 1), message)

    def chain(self, schedule: Schedule) -> Chain:
        """The steps of this sampler on a schedule."""
        return Chain(schedule, self.grid(self.steps, schedule))

    @abstractmethod
    def path(self, denoiser: Denoiser, noise: NoiseSource, class_label: Tensor | None = None) -> Iterator[PathPoint]:
        """Yield the state after every step; the first noise is that of x_T."""

    def evaluations(self, denoiser: Denoiser) -> int:
        """Number of network evaluations per image."""
        return int(denoiser.evaluations(self.chain(denoiser.schedule).steps.later).sum())

    def __call__(self, denoiser: Denoiser, noise: NoiseSource, class_label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), about [−1, 1]; noise and class_label as in `path`."""
        for point in self.path(denoiser, noise, class_label):
            image = point.x_t
        return image

    def _clip_clean(self, x: Tensor) -> Tensor:
        """Clamp x̂, in place."""
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
    """Coefficients of the terms of S steps: float64, (S,) each, the step to the clean image first.

    log_std: of the noise, −∞ where a step adds none; log_std_slope: its slope in the network's variance channels.
    """

    coef_x_t: Tensor
    coef_x0: Tensor
    coef_x0_prev: Tensor
    log_std: Tensor
    log_std_slope: Tensor


class WeightedSum(Sampler, ABC):
    """A sampler whose step is a weighted sum of x_t, of this and the previous step's x̂, and of noise."""

    @abstractmethod
    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        """The coefficients of adjoining steps, in fields of (S,); the last of them is taken first."""

    def path(self, denoiser: Denoiser, noise: NoiseSource, class_label: Tensor | None = None) -> Iterator[PathPoint]:
        x_t = denoiser.schedule.prior_std * noise()
        steps = self.chain(denoiser.schedule).steps
        denoise = denoiser.prepare(steps.later, x_t, class_label)
        coefs_x_t, *others = self.weights(denoiser, steps)
        rows = list(zip(as_scalars(coefs_x_t, x_t), *(field.tolist() for field in others), strict=True))
        x_prev: Tensor | None = None
        for number in range(len(rows) - 1, -1, -1):
            coef_x_t, coef_x0, coef_x0_prev, log_std, log_std_slope = rows[number]
            x, raw = denoise(number, x_t)
            x = self._clip_clean(x)
            x_t = torch.mul(x_t, coef_x_t).add_(x, alpha=coef_x0)
            if coef_x0_prev:
                assert x_prev is not None
                x_t.add_(x_prev, alpha=coef_x0_prev)
            if log_std > -math.inf:
                if raw is None or not log_std_slope:
                    x_t.add_(noise(), alpha=math.exp(log_std))
                else:
                    x_t.addcmul_(noise(), torch.mul(raw, log_std_slope).add_(log_std).exp_())
            x_prev = x
            yield PathPoint(x_t, x)


class Ancestral(WeightedSum):
    """x_s ~ p(x_s | x_t), the reverse step's own Gaussian, on any grid and with any variance.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), algorithm 2. https://arxiv.org/abs/2006.11239
    """

    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        intercept, slope = denoiser.variance.line(steps)
        log_std = torch.where(steps.earlier.sigma > 0, intercept / 2, -torch.inf)  # the last step's image is the mean
        return StepWeights(*steps.mean_weights, torch.zeros_like(log_std), log_std, slope / 2)


@dataclass(eq=False)
class DDIM(WeightedSum):
    """x_s = α_s x̂ + √(σ_s² − v) ε̂ + √v z with v = η² c σ_s²: deterministic at η = 0, the ancestral step at η = 1.

    η = 0 is Euler's method in x/α against σ/α. Song et al., "Denoising Diffusion Implicit Models" (2020), equation 12.
    https://arxiv.org/abs/2010.02502
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.eta <= 1, f"eta must be between 0 and 1, got {self.eta}")

    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        t, s = steps.later, steps.earlier
        variance = self.eta**2 * steps.posterior_variance
        coef_x_t = (s.sigma**2 - variance).sqrt() / t.sigma  # ε̂ = (x_t − α_t x̂)/σ_t
        zero = torch.zeros_like(coef_x_t)
        return StepWeights(coef_x_t, s.alpha - coef_x_t * t.alpha, zero, variance.log() / 2, zero)


@dataclass(eq=False)
class DPMPP2M(WeightedSum):
    """DPM-Solver++(2M), second order in λ from this and the previous step's x̂; optionally its stochastic variant.

    With h = λ_s/2 − λ_t/2 and D the x̂ extrapolated from both,

        deterministic   x_s = (σ_s/σ_t) x_t + α_s (1 − e^−h) D
        stochastic      x_s = (σ_s/σ_t) e^−h x_t + α_s (1 − e^−2h) D + σ_s √(1 − e^−2h) z

    One network evaluation a step. A step from α_t = 0 or to the clean image is DDIM's, of first order. Lu et
    al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (2022), algorithm 2 and
    appendix A. https://arxiv.org/abs/2211.01095
    """

    stochastic: bool = False  # solves the reverse SDE instead of the probability-flow ODE

    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        t, s = steps.later, steps.earlier
        h = (s.log_snr - t.log_snr) / 2
        distance = 2 * h if self.stochastic else h
        coef_x0 = -s.alpha * torch.expm1(-distance)
        ratio = h[:-1] / (2 * h[1:])  # D = x̂ + ratio (x̂ − x̂'), from h of this step and of the previous one
        ratio = torch.cat([ratio.where(ratio.isfinite(), 0.0), torch.zeros_like(h[-1:])])
        coef_x_t = s.sigma / t.sigma * (torch.exp(-h) if self.stochastic else 1.0)
        variance = s.sigma**2 * -torch.expm1(-distance) if self.stochastic else torch.zeros_like(h)
        return StepWeights(coef_x_t, coef_x0 * (1 + ratio), -coef_x0 * ratio, variance.log() / 2, torch.zeros_like(h))


@dataclass(eq=False)
class Heun(Sampler):
    """Heun's method in x/α against σ/α, with optional fresh noise ("churn") before each step.

        Euler   x_s  = (σ_s/σ_t) x_t + (α_s − α_t σ_s/σ_t) x̂(x_t)
        Heun    x_s' = x_s + ½ α_s (σ_t α_s/(α_t σ_s) − 1) (x̂(x_s) − x̂(x_t))

    Two network evaluations a step. A step is Euler's, with one, if it leads to the clean image or starts where x_t
    carries almost no signal: there the correction would multiply the difference of the two estimates by half of
    (σ_t/α_t)/(σ_s/α_s), more than 1,000 in the first of 10 uniform steps of a cosine schedule.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), algorithm 2; without
    churn their algorithm 1. https://arxiv.org/abs/2206.00364
    """

    churn: float = 0.0  # S_churn, divided evenly among all steps
    churn_min: float = 0.05  # S_tmin, the lowest σ/α at which noise is added
    churn_max: float = 50.0  # S_tmax, the highest
    churn_noise: float = 1.0  # S_noise, the added noise's standard deviation

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.churn >= 0, f"churn must not be negative, got {self.churn}")
        message = f"churn_min must be positive and at most churn_max, got {self.churn_min} and {self.churn_max}"
        require(0 < self.churn_min <= self.churn_max, message)

    def evaluations(self, denoiser: Denoiser) -> int:
        steps = self.chain(denoiser.schedule).steps
        start = self._churned(denoiser.schedule, steps.later)
        second = denoiser.evaluations(steps.earlier)[self._corrected(steps.earlier, start)]
        return int(denoiser.evaluations(start).sum() + second.sum())

    def path(self, denoiser: Denoiser, noise: NoiseSource, class_label: Tensor | None = None) -> Iterator[PathPoint]:
        x_t = denoiser.schedule.prior_std * noise()
        chain = self.chain(denoiser.schedule)
        start = self._churned(denoiser.schedule, chain.steps.later)
        denoise = denoiser.prepare(start, x_t, class_label)
        denoise_end = denoiser.prepare(chain.steps.later, x_t, class_label)
        rows = self._weights(chain, start, x_t)
        for number in range(len(chain) - 1, -1, -1):
            coef_signal, coef_noise, coef_x_t, coef_x0, coef_change = rows[number]
            if coef_noise:
                x_t = torch.mul(x_t, coef_signal).add_(noise(), alpha=coef_noise)
            x = self._clip_clean(denoise(number, x_t)[0])
            x_t = torch.mul(x_t, coef_x_t).add_(x, alpha=coef_x0)
            if coef_change:
                x_t.add_(self._clip_clean(denoise_end(number - 1, x_t)[0]).sub_(x), alpha=coef_change)
            yield PathPoint(x_t, x)

    def _weights(self, chain: Chain, t: NoiseLevel, x_t: Tensor) -> list[tuple[float, float, Tensor, float, float]]:
        """Coefficients: of x_t and noise in the churn, of x_t and x̂ in Euler's step, of the change of x̂ in Heun's."""
        before, s = chain.steps.later, chain.steps.earlier
        spread = (t.sigma / t.alpha) ** 2 - (before.sigma / before.alpha) ** 2
        added = torch.where(t.log_snr < before.log_snr, self.churn_noise * t.alpha * spread.clamp(min=0).sqrt(), 0.0)
        coef_x_t = s.sigma / t.sigma
        coef_change = (s.alpha * (s.alpha / (t.alpha * coef_x_t) - 1) / 2).where(self._corrected(s, t), 0.0)
        fields = (t.alpha / before.alpha, added, s.alpha - coef_x_t * t.alpha, coef_change)
        signal, noise, clean, change = (field.tolist() for field in fields)
        return list(zip(signal, noise, as_scalars(coef_x_t, x_t), clean, change, strict=True))

    def _corrected(self, s: NoiseLevel, t: NoiseLevel) -> Tensor:
        """Whether each step is Heun's, with a second evaluation: bool, of the levels' shape."""
        return (s.sigma > 0) & (t.log_snr > MIN_LOG_SNR)

    def _churned(self, schedule: Schedule, t: NoiseLevel) -> NoiseLevel:
        """The levels after the churn, up to √2 times as noisy; unchanged where the schedule does not go as far."""
        gain = min(self.churn / self.steps, math.sqrt(2) - 1)
        if not gain:
            return t
        ratio = (-t.log_snr / 2).exp()
        noisier = t.log_snr - 2 * math.log1p(gain)
        within = (self.churn_min <= ratio) & (ratio <= self.churn_max)
        log_snr = torch.where(within & (noisier >= schedule.log_snr(torch.ones_like(t.t)).cpu()), noisier, t.log_snr)
        time = torch.where(log_snr < t.log_snr, schedule.time(log_snr).cpu(), t.t)
        return NoiseLevel(time, log_snr, *schedule.scales(log_snr))
