"""The exact likelihood of the probability-flow ODE: the density that its deterministic map gives an image.

Along the flow an image moves so that its density at each time is that of the noised data. With r² = α² + σ² and the
angle φ = arctan(σ/α), z = x_t/r obeys

    dz/dφ = v̂ = cos φ ε̂ − sin φ x̂,        d log p(z)/dφ = −∇·v̂

for every geometry, and without a singularity at either end. Song et al., "Score-Based Generative Modeling through
Stochastic Differential Equations" (2020), section 4.3; in this variable, Salimans & Ho, "Progressive Distillation"
(2022), appendix D. https://arxiv.org/abs/2011.13456 https://arxiv.org/abs/2202.00512
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.gaussian import Gaussian, per_image
from noising.diffusion.levels import NoiseLevel, like

__all__ = ["Divergence", "ExactDivergence", "HutchinsonDivergence", "flow_log_prob"]

Velocity = Callable[[Tensor], Tensor]


class Divergence(ABC):
    """∇·v at each image."""

    @abstractmethod
    def __call__(self, velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor]:
        """(v (B, C, H, W), ∇·v (B,)) at z (B, C, H, W); one image's velocity does not depend on the others."""


class ExactDivergence(Divergence):
    """The trace of the Jacobian, one backward pass a pixel: for few pixels."""

    def __call__(self, velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            v = velocity(z)
            trace = torch.zeros(len(z), dtype=z.dtype, device=z.device)
            for pixel, component in enumerate(v.flatten(1).unbind(1)):
                (gradient,) = torch.autograd.grad(component.sum(), z, retain_graph=True)
                trace += gradient.flatten(1)[:, pixel]
        return v.detach(), trace


class HutchinsonDivergence(Divergence):
    """eᵀ ∇v e with E[e eᵀ] = I, unbiased with one backward pass. Grathwohl et al., "FFJORD" (2018).

    https://arxiv.org/abs/1810.01367
    """

    def __init__(self, direction: Tensor) -> None:
        """direction: e, (B, C, H, W), of mean 0 and variance 1; the same along the whole flow."""
        self.direction = direction

    def __call__(self, velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            v = velocity(z)
            (gradient,) = torch.autograd.grad((v * self.direction).sum(), z)
        return v.detach(), per_image(gradient * self.direction)


@torch.no_grad()
def flow_log_prob(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    divergence: Divergence,
    clip: float | None = None,
    class_label: Tensor | None = None,
) -> Tensor:
    """log p(x) of images x (B, C, H, W) at the noise level of times[0], (B,) nats.

    times: rising to 1, (K,); between two of them one step of Runge and Kutta's fourth order: 4 (K − 1) evaluations. For
    clean images start at a time whose noise does not matter: the density is that of the noised data.
    """
    schedule = denoiser.schedule
    ends = schedule(times.double().cpu())
    angles = torch.atan2(ends.sigma, ends.alpha).flatten().tolist()
    radius = torch.hypot(ends.alpha, ends.sigma).flatten()

    def slope(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        level = _level(denoiser, angle, float(ends.t.flatten()[-1]), angles[-1])

        def velocity(z: Tensor) -> Tensor:
            x_t = z * torch.hypot(level.alpha, level.sigma)
            prediction = denoiser.at(x_t, level, clip, class_label)
            return math.cos(angle) * prediction.noise - math.sin(angle) * prediction.x

        return divergence(velocity, z)

    z, log_volume = x / like(radius[0], x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for start, end in pairwise(angles):
        step = end - start
        v1, d1 = slope(z, start)
        v2, d2 = slope(z + step / 2 * v1, start + step / 2)
        v3, d3 = slope(z + step / 2 * v2, start + step / 2)
        v4, d4 = slope(z + step * v3, end)
        z = z + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        log_volume = log_volume + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    x_1 = z * like(radius[-1], z)
    prior = Gaussian(torch.zeros_like(x_1), torch.tensor(2 * math.log(schedule.prior_std), dtype=torch.float64))
    stretched = x[0].numel() * float(radius[-1].log() - radius[0].log())
    return prior.log_prob(x_1) + log_volume + stretched


def _level(denoiser: Denoiser, angle: float, last_time: float, last_angle: float) -> NoiseLevel:
    """The level whose σ/α is tan φ."""
    if angle >= last_angle:
        last: NoiseLevel = denoiser.schedule(torch.tensor(last_time, dtype=torch.float64))
        return last
    log_snr = torch.tensor(-2 * math.log(math.tan(angle)), dtype=torch.float64)
    return NoiseLevel(denoiser.schedule.time(log_snr), log_snr, *denoiser.schedule.scales(log_snr))
