"""The denoiser: a network, a schedule and a parameterization, which together estimate (x̂, ε̂) from any x_t.

Samplers, objectives and the bound use the network through it alone.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.levels import NoiseLevel, as_scalars, cast_to
from noising.diffusion.networks import adapted, output_of
from noising.diffusion.noise_labels import NoiseLabel
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Transition
from noising.diffusion.variances import DenoisingError, Optimal, ReverseVariance

DenoiseFn = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]
"""(index of a level, x_t (B, C, H, W)) -> (x̂ in a new tensor, the network's variance channels or None)."""


class Prediction(NamedTuple):
    """A denoiser's estimates x̂ and ε̂ from x_t, each (B, C, H, W).

    output: the network's, which the parameterization solves for both; raw_variance: its variance channels, if any.
    """

    x: Tensor
    noise: Tensor
    output: Tensor
    raw_variance: Tensor | None


class Denoiser(nn.Module):
    """Network + schedule + parameterization + reverse variance + noise label."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        parameterization: Parameterization,
        variance: ReverseVariance,
        noise_label: NoiseLabel,
    ) -> None:
        """model(x, noise_label, class_label=None) -> (B, variance.outputs · C, H, W), or what `adapted` makes so.

        A model that is trained on augmented images is called with augmentation (B, labels) too, in training alone.
        """
        super().__init__()
        self.model = adapted(model)
        self.schedule = schedule
        self.parameterization = parameterization
        self.variance = variance
        self.noise_label = noise_label

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        clip: float | None = None,
        class_label: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Prediction:
        """(x̂, ε̂) at times t in (0, 1]. x_t: (B, C, H, W); t: (B,) or of no dimension."""
        return self.at(x_t, self.schedule(t.cpu()), clip, class_label, augmentation)

    def at(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        clip: float | None = None,
        class_label: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Prediction:
        """(x̂, ε̂) at a given level. With clip, x̂ is clamped to [−clip, clip] and ε̂ recomputed from it."""
        prediction = self.predict(x_t, level, class_label, augmentation)
        if clip is None:
            return prediction
        x = prediction.x.clamp(-clip, clip)
        return prediction._replace(x=x, noise=(x_t - cast_to(level.alpha, x_t) * x) * cast_to(1 / level.sigma, x_t))

    def output(
        self, x_t: Tensor, level: NoiseLevel, class_label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate the network: a x + b ε, (B, C, H, W), and what it says of the variance, None for a fixed one."""
        label = self.noise_label(level).to(x_t.device, x_t.dtype, non_blocking=True)
        scaled = cast_to(self.parameterization.input_scale(level), x_t) * x_t
        # under autocast the network returns half precision; x̂ and ε̂ are solved from it in x_t's type
        more = {} if augmentation is None else {"augmentation": augmentation}  # most networks take none
        found = self.model(scaled, label.flatten().expand(len(x_t)), class_label=class_label, **more)
        raw = output_of(found).to(x_t.dtype)
        if self.variance.outputs == 1:
            return raw, None
        output, raw_variance = raw.chunk(self.variance.outputs, dim=1)
        return output, raw_variance

    def predict(
        self, x_t: Tensor, level: NoiseLevel, class_label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Prediction:
        """(x̂, ε̂) without clipping."""
        output, raw_variance = self.output(x_t, level, class_label, augmentation)
        x, noise = self.parameterization.solve(output, x_t, level)
        return Prediction(x, noise, output, raw_variance)

    def prepare(self, levels: NoiseLevel, x: Tensor, class_label: Tensor | None = None) -> DenoiseFn:
        """A function that estimates x̂ at levels given in fields of (S,), for images like x (B, C, H, W).

        Noise labels and coefficients are computed here, once: each call is the network and two or three operations.
        """
        one, zero = torch.ones_like(levels.alpha), torch.zeros_like(levels.alpha)
        by_output: list[float] = self.parameterization.solve(one, zero, levels)[0].tolist()
        by_x_t = as_scalars(self.parameterization.solve(zero, one, levels)[0], x)
        scales: list[float] = self.parameterization.input_scale(levels).tolist()
        labels = self.noise_label(levels).to(x.device, x.dtype)[:, None].expand(-1, len(x)).unbind()
        model, outputs = self.model, self.variance.outputs  # attribute look-up in a module takes longer than their use

        def denoise(number: int, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
            scaled = x_t if scales[number] == 1 else scales[number] * x_t
            found = model(scaled, labels[number], class_label=class_label)
            output, raw_variance = output_of(found).to(x_t.dtype), None
            if outputs > 1:
                output, raw_variance = output.chunk(outputs, dim=1)
            return torch.mul(x_t, by_x_t[number]).add_(output, alpha=by_output[number]), raw_variance

        return denoise

    def evaluations(self, levels: NoiseLevel) -> Tensor:
        """Number of network evaluations of one estimate at each level: int64, of the levels' shape."""
        return torch.ones_like(levels.t, dtype=torch.long)

    def reverse(self, step: Transition, x_t: Tensor, prediction: Prediction) -> Gaussian:
        """p(x_s | x_t): the posterior mean with x̂ for x, and the reverse variance. Ho et al. (2020), equation 11."""
        return Gaussian(step.mean(x_t, prediction.x), self.variance.log_variance(step, prediction.raw_variance))

    @torch.no_grad()
    def fit_variance(
        self,
        x: Tensor,
        noises: Iterable[Tensor],
        timesteps: int,
        clip: float | None,
        class_label: Tensor | None = None,
    ) -> None:
        """Measure E‖x − x̂‖²/D for a variance that is `Optimal`, at levels uniform in λ over the chain of T steps.

        x: training images (B, C, H, W); noises: standard normal noise of x's shape, one for each level; clip: limit of
        x̂, the same as where the variance will be used.
        """
        variance = self.variance
        assert isinstance(variance, Optimal)
        assert isinstance(variance.error, DenoisingError)
        ends = self.schedule.log_snr(torch.tensor([1.0, 1 / timesteps], dtype=torch.float64)).cpu()
        lowest = max(float(ends[0]), -20.0)  # the error is constant below, and the last level may be −∞
        log_snr = torch.linspace(lowest, float(ends[1]), variance.knots, dtype=torch.float64)
        errors = []
        for t, noise in zip(self.schedule.time(log_snr), noises, strict=False):
            level = self.schedule(t)
            clean = self.at(level.perturb(x, noise), level, clip, class_label).x
            errors.append((clean - x).square().double().mean())
        variance.error.set(log_snr, torch.stack(errors))
