"""The denoiser: a network, a schedule and a parameterization, which together say (x̂, ε̂) for any x_t.

Samplers, objectives and the bound see nothing else of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.levels import NoiseLevel, as_scalars, cast_to
from noising.diffusion.noise_labels import NoiseLabel
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Transition
from noising.diffusion.variances import ReverseVariance

__all__ = ["DenoiseFn", "Denoiser", "Prediction"]

DenoiseFn = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]
"""The number of a level, from 0, and x_t (B, C, H, W) -> x̂, a tensor of its own, and the raw variance."""


class Prediction(NamedTuple):
    """What a denoiser says of x_t, each (B, C, H, W)."""

    x: Tensor
    noise: Tensor
    output: Tensor
    raw_variance: Tensor | None

    def rows(self, rows: Tensor) -> Prediction:
        """What it says of some images: rows (b,), on the images' device."""
        raw = None if self.raw_variance is None else self.raw_variance[rows]
        return Prediction(self.x[rows], self.noise[rows], self.output[rows], raw)


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
        """model(x, noise_label, class_label=None) -> (B, variance.outputs · C, H, W)."""
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.parameterization = parameterization
        self.variance = variance
        self.noise_label = noise_label

    def forward(
        self, x_t: Tensor, t: Tensor, clip: float | None = None, class_label: Tensor | None = None
    ) -> Prediction:
        """(x̂, ε̂) at times t in (0, 1]. x_t: (B, C, H, W); t: (B,) or of no dimension."""
        return self.at(x_t, self.schedule(t.cpu()), clip, class_label)

    def at(
        self, x_t: Tensor, level: NoiseLevel, clip: float | None = None, class_label: Tensor | None = None
    ) -> Prediction:
        """The same at a level made before. With clip, x̂ is kept in [−clip, clip] and ε̂ derived from it again."""
        prediction = self.predict(x_t, level, class_label)
        if clip is None:
            return prediction
        x = prediction.x.clamp(-clip, clip)
        noise = (x_t - cast_to(level.alpha, x_t) * x) * cast_to(1 / level.sigma, x_t)
        return prediction._replace(x=x, noise=noise)

    def predict(self, x_t: Tensor, level: NoiseLevel, class_label: Tensor | None = None) -> Prediction:
        """What the network says, as it says it."""
        label = self.noise_label(level).to(x_t.device, x_t.dtype, non_blocking=True)
        scaled = cast_to(self.parameterization.input_scale(level), x_t) * x_t
        # under autocast the network answers in half precision: what is solved from it is not
        raw = self.model(scaled, label.flatten().expand(len(x_t)), class_label=class_label).to(x_t.dtype)
        output, raw_variance = raw, None
        if self.variance.outputs > 1:
            output, raw_variance = raw.chunk(self.variance.outputs, dim=1)
        x, noise = self.parameterization.solve(output, x_t, level)
        return Prediction(x, noise, output, raw_variance)

    def prepare(self, levels: NoiseLevel, x: Tensor, class_label: Tensor | None = None) -> DenoiseFn:
        """x̂ at levels known beforehand, in fields of (S,), for images of x's shape (B, C, H, W), type and device.

        Labels and coefficients are made here, once: a look is the network and two or three operations.
        """
        one, zero = torch.ones_like(levels.alpha), torch.zeros_like(levels.alpha)
        by_output: list[float] = self.parameterization.solve(one, zero, levels)[0].tolist()
        by_x_t = as_scalars(self.parameterization.solve(zero, one, levels)[0], x)
        scales: list[float] = self.parameterization.input_scale(levels).tolist()
        labels = self.noise_label(levels).to(x.device, x.dtype)[:, None].expand(-1, len(x)).unbind()
        model, outputs = self.model, self.variance.outputs  # a module's members take longer to find than to use

        def denoise(number: int, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
            scaled = x_t if scales[number] == 1 else scales[number] * x_t
            output, raw_variance = model(scaled, labels[number], class_label=class_label), None
            if output.dtype != x_t.dtype:
                output = output.to(x_t.dtype)
            if outputs > 1:
                output, raw_variance = output.chunk(outputs, dim=1)
            return torch.mul(x_t, by_x_t[number]).add_(output, alpha=by_output[number]), raw_variance

        return denoise

    def evaluations(self, levels: NoiseLevel) -> Tensor:
        """How many network evaluations a look at each level takes: int64, of the levels' shape."""
        return torch.ones_like(levels.t, dtype=torch.long)

    def reverse(self, step: Transition, x_t: Tensor, prediction: Prediction) -> Gaussian:
        """p(x_s | x_t): the posterior's mean with x̂ for x, and the reverse variance (Ho et al., eq. 11)."""
        log_variance = self.variance.log_variance(step, prediction.raw_variance)
        return Gaussian(step.mean(x_t, prediction.x), log_variance)
