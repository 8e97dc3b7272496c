"""Oracles, and the optimal denoiser of an oracle in place of a trained one.

With it a bound, a loss or a sampler can be compared with the truth, on any schedule and with any parameterization.
"""

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


class Oracle(nn.Module, ABC):
    """A distribution of images with a known optimal denoiser."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Entropy in nats per dimension: differential for real-valued pixels, discrete for discrete ones."""

    @abstractmethod
    def clean(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """E[x | x_t], of the least mean squared error. x_t: (B, C, H, W); level.t may be nan."""

    @abstractmethod
    def error(self, level: NoiseLevel) -> Tensor:
        """E‖x − E[x | x_t]‖²/D at a level, as `Optimal` needs it: float64, of the level's shape."""


class OracleModel(nn.Module):
    """A network whose output is the oracle's optimal one in a parameterization; its noise label must be λ."""

    def __init__(self, oracle: Oracle, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.oracle = oracle
        self.schedule = schedule
        self.parameterization = parameterization

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The optimal output (B, C, H, W) for x, the input scale times x_t; noise_label: λ (B,)."""
        log_snr = noise_label.double().cpu().reshape(-1, 1, 1, 1)
        no_time = torch.full_like(log_snr, math.nan)  # inverting the schedule would cost more than all the rest
        level = NoiseLevel(no_time, log_snr, *self.schedule.scales(log_snr))
        x_t = x / cast_to(self.parameterization.input_scale(level), x)
        clean = self.oracle.clean(x_t, level)
        noise = (x_t - cast_to(level.alpha, x) * clean) / cast_to(level.sigma, x)
        return self.parameterization.target(clean, noise, level)


def oracle_denoiser(
    oracle: Oracle, schedule: Schedule, parameterization: Parameterization, variance: ReverseVariance
) -> Denoiser:
    """The optimal denoiser with this schedule and parameterization. Raises ValueError for a learned variance."""
    if variance.outputs != 1:
        raise ValueError("an oracle predicts no learned variance: give it a fixed or the optimal one")
    return Denoiser(OracleModel(oracle, schedule, parameterization), schedule, parameterization, variance, LogSNR())
