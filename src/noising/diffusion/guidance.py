"""Guidance: a denoiser is extrapolated away from a weaker one, the guide.

    x̂ = x̂_weak + scale (x̂_strong − x̂_weak),    ε̂ likewise

The guide is the same network without the class (classifier-free guidance), or another network, smaller or less trained
(autoguidance). The result is a denoiser, which works with every sampler.
"""

import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import DenoiseFn, Denoiser, Prediction
from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.networks import no_class
from noising.errors import require


class Unconditional(nn.Module):
    """A network that is told no class, whatever it is given.

    classes: its number of classes, the label of no class in training; 0: the network is called without a label.
    """

    def __init__(self, model: nn.Module, classes: int = 0) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        if not self.classes:
            output: Tensor = self.model(x, noise_label)
            return output
        output = self.model(x, noise_label, class_label=no_class(noise_label, self.classes))
        return output


def unconditional(denoiser: Denoiser) -> Denoiser:
    """A denoiser that ignores class labels, from one that uses them."""
    model = Unconditional(denoiser.model)
    return Denoiser(model, denoiser.schedule, denoiser.parameterization, denoiser.variance, denoiser.noise_label)


class Guided(Denoiser):
    """A denoiser extrapolated away from its guide; the reverse variance is the denoiser's own.

    Outside the interval, and everywhere at scale 1, the guide is not evaluated.
    """

    def __init__(
        self, denoiser: Denoiser, guide: Denoiser, scale: float, interval: tuple[float, float] | None = None
    ) -> None:
        """guide: the weaker denoiser; interval: the lowest and the highest λ at which it guides, None for all.

        Raises ValueError for a negative scale, an interval that does not rise, or a guide of another schedule.

        Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models" (2024). https://arxiv.org/abs/2404.07724
        """
        require(scale >= 0, f"scale must not be negative, got {scale:g}: 1 is no guidance")
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError(f"interval must rise from the lowest λ to the highest, got {list(interval)}")
        times = torch.linspace(0.001, 1, 64, dtype=torch.float64)
        a, b = (schedule(times) for schedule in (denoiser.schedule, guide.schedule))
        same = torch.allclose(a.alpha, b.alpha) and torch.allclose(a.sigma, b.sigma)
        require(same, "the guide has another schedule: it must be the same as that of the guided model")
        super().__init__(
            denoiser.model, denoiser.schedule, denoiser.parameterization, denoiser.variance, denoiser.noise_label
        )
        self.guide = guide
        self.scale = scale
        self.interval = interval

    def predict(
        self, x_t: Tensor, level: NoiseLevel, class_label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Prediction:
        strong = super().predict(x_t, level, class_label, augmentation)
        scale = self._scales(level)
        if bool((scale == 1).all()):
            return strong
        weak = self.guide.predict(x_t, level, class_label, augmentation)
        excess = cast_to(scale - 1, x_t)
        x, noise = strong.x + excess * (strong.x - weak.x), strong.noise + excess * (strong.noise - weak.noise)
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
        return super().evaluations(levels) + self.guide.evaluations(levels).where(self._scales(levels) != 1, 0)

    def _scales(self, level: NoiseLevel) -> Tensor:
        """The scale at a level, 1 outside the interval: float64, of the level's shape."""
        scale = torch.full_like(level.log_snr, self.scale)
        if self.interval is None:
            return scale
        lowest, highest = self.interval
        return scale.where((level.log_snr >= lowest) & (level.log_snr <= highest), 1.0)


def classifier_free(denoiser: Denoiser, scale: float, interval: tuple[float, float] | None = None) -> Guided:
    """Guide by the same network without the class. The scale is 1 + w of Ho & Salimans: 1 no guidance, 0 no class.

    "Classifier-Free Diffusion Guidance" (2022), equation 6. https://arxiv.org/abs/2207.12598
    """
    return Guided(denoiser, unconditional(denoiser), scale, interval)


def autoguidance(
    denoiser: Denoiser, guide: Denoiser, scale: float, interval: tuple[float, float] | None = None
) -> Guided:
    """Guide by a weaker version of the network, smaller or less trained, with the same class label.

    Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself" (2024). https://arxiv.org/abs/2406.02507
    """
    return Guided(denoiser, guide, scale, interval)
