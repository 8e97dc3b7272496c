"""Guidance: a denoiser driven further in the direction in which it differs from a weaker one.

    x̂ = x̂_weak + scale (x̂_strong − x̂_weak)

and ε̂, being the same line's other coordinate, likewise. The weaker one is the same network without the class
(classifier-free guidance), or another network, smaller or less trained (autoguidance). What comes of it is a denoiser,
for every sampler.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import DenoiseFn, Denoiser, Prediction
from noising.diffusion.levels import NoiseLevel, cast_to

__all__ = ["Guided", "Unconditional", "autoguidance", "classifier_free", "unconditional"]


class Unconditional(nn.Module):
    """A network that is never told the class."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        output: Tensor = self.model(x, noise_label)
        return output


def unconditional(denoiser: Denoiser) -> Denoiser:
    """The same denoiser, deaf to the class."""
    return Denoiser(
        Unconditional(denoiser.model),
        denoiser.schedule,
        denoiser.parameterization,
        denoiser.variance,
        denoiser.noise_label,
    )


class Guided(Denoiser):
    """A denoiser, and the weaker one that it is driven away from; the reverse variance is the first's.

    Outside the interval, and everywhere at scale 1, it is the first alone, and costs no second evaluation.
    """

    def __init__(
        self, denoiser: Denoiser, guide: Denoiser, scale: float, interval: tuple[float, float] | None = None
    ) -> None:
        """guide: the weaker denoiser, of the same schedule; interval: the lowest and the highest λ at which it guides.

        Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models" (2024). https://arxiv.org/abs/2404.07724
        """
        if scale < 0:
            raise ValueError(f"scale must not be negative, got {scale:g}: 1 is no guidance")
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError(f"interval must rise from the lowest λ to the highest, got {list(interval)}")
        if not _same(denoiser, guide):
            raise ValueError("the guide was trained on another schedule: it must be that of the model it guides")
        super().__init__(
            denoiser.model, denoiser.schedule, denoiser.parameterization, denoiser.variance, denoiser.noise_label
        )
        self.guide = guide
        self.scale = scale
        self.interval = interval

    def predict(self, x_t: Tensor, level: NoiseLevel, class_label: Tensor | None = None) -> Prediction:
        strong = super().predict(x_t, level, class_label)
        scale = self._scales(level)
        if bool((scale == 1).all()):
            return strong
        weak = self.guide.predict(x_t, level, class_label)
        beyond = cast_to(scale - 1, x_t)
        x, noise = strong.x + beyond * (strong.x - weak.x), strong.noise + beyond * (strong.noise - weak.noise)
        return Prediction(x, noise, self.parameterization.target(x, noise, level), strong.raw_variance)

    def prepare(self, levels: NoiseLevel, x: Tensor, class_label: Tensor | None = None) -> DenoiseFn:
        denoise, denoise_weak = super().prepare(levels, x, class_label), self.guide.prepare(levels, x, class_label)
        scales: list[float] = self._scales(levels).tolist()

        def guided(number: int, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
            strong, raw_variance = denoise(number, x_t)
            if scales[number] == 1:
                return strong, raw_variance
            return torch.lerp(denoise_weak(number, x_t)[0], strong, scales[number]), raw_variance

        return guided

    def evaluations(self, levels: NoiseLevel) -> Tensor:
        second = self.guide.evaluations(levels)
        return super().evaluations(levels) + second.where(self._scales(levels) != 1, 0)

    def _scales(self, level: NoiseLevel) -> Tensor:
        """The scale at a level, 1 outside the interval: float64, of the level's shape."""
        scale = torch.full_like(level.log_snr, self.scale)
        if self.interval is None:
            return scale
        lowest, highest = self.interval
        return scale.where((level.log_snr >= lowest) & (level.log_snr <= highest), 1.0)


def _same(denoiser: Denoiser, guide: Denoiser) -> bool:
    """Whether the two schedules go through the same (α, σ) at the same times."""
    times = torch.linspace(0.001, 1, 64, dtype=torch.float64)
    a, b = (schedule(times) for schedule in (denoiser.schedule, guide.schedule))
    return torch.allclose(a.alpha, b.alpha) and torch.allclose(a.sigma, b.sigma)


def classifier_free(denoiser: Denoiser, scale: float, interval: tuple[float, float] | None = None) -> Guided:
    """Away from what the network says without the class. The scale is 1 + w of Ho & Salimans, 0 the class unheard.

    "Classifier-Free Diffusion Guidance" (2022), equation 6. https://arxiv.org/abs/2207.12598
    """
    return Guided(denoiser, unconditional(denoiser), scale, interval)


def autoguidance(
    denoiser: Denoiser, guide: Denoiser, scale: float, interval: tuple[float, float] | None = None
) -> Guided:
    """Away from what a lesser version of the network says, smaller or less trained, told the same class.

    Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself" (2024). https://arxiv.org/abs/2406.02507
    """
    return Guided(denoiser, guide, scale, interval)
