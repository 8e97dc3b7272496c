"""What an oracle knows, and the network that it can stand in for.

With it a bound, a loss or a sampler has a truth to be held to, on any schedule and with any parameterization.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.noise_labels import LogSNR
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.variances import ReverseVariance

__all__ = ["Oracle", "OracleModel", "oracle_denoiser"]


class Oracle(nn.Module, ABC):
    """A distribution of images with a known optimal denoiser."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Nats per dimension: differential where pixels are real numbers, of the values where they are discrete."""

    @abstractmethod
    def clean(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """E[x | x_t], what no denoiser can better in the mean square. x_t: (B, C, H, W); level.t may be nan."""

    @abstractmethod
    def error(self, level: NoiseLevel) -> Tensor:
        """E‖x − E[x | x_t]‖²/D at a level, float64, of the level's shape: what `Optimal` wants to know."""


class OracleModel(nn.Module):
    """The network that predicts what the oracle knows, in a parameterization's terms; its label must be λ itself."""

    def __init__(self, oracle: Oracle, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.oracle = oracle
        self.schedule = schedule
        self.parameterization = parameterization

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The optimal output for x, the input scale times x_t: (B, C, H, W) both; noise_label: λ (B,)."""
        log_snr = noise_label.double().cpu().reshape(-1, 1, 1, 1)
        untold = torch.full_like(log_snr, math.nan)  # to find the time would cost more than all the rest
        level = NoiseLevel(untold, log_snr, *self.schedule.scales(log_snr))
        x_t = x / cast_to(self.parameterization.input_scale(level), x)
        clean = self.oracle.clean(x_t, level)
        noise = (x_t - cast_to(level.alpha, x) * clean) / cast_to(level.sigma, x)
        return self.parameterization.target(clean, noise, level)


def oracle_denoiser(
    oracle: Oracle, schedule: Schedule, parameterization: Parameterization, variance: ReverseVariance
) -> Denoiser:
    """The optimal denoiser with this schedule and parameterization; the variance must have one output."""
    if variance.outputs != 1:
        raise ValueError("an oracle says the clean image, and no learned variance: give it a fixed or the optimal one")
    model = OracleModel(oracle, schedule, parameterization)
    return Denoiser(model, schedule, parameterization, variance, LogSNR())
