"""Noise schedules: how much signal and how much noise an image holds at time t.

An image is noised by x_t = α x + σ ε. The one coordinate is the log signal-to-noise ratio λ = log α²/σ², which falls
as t goes from 0 (clean) to 1 (noise). A schedule is a curve λ(t) and a geometry, the line that turns λ into (α, σ).

Times and levels are float64 on the host: a batch of them is tiny, their differences are delicate, and some devices
have no float64. They are cast to the image's type and device where they meet it (`like`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Cosine",
    "Geometry",
    "LinearBeta",
    "NoiseLevel",
    "Schedule",
    "TabulatedBeta",
    "VariancePreserving",
    "like",
]


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A host coefficient in x's type and on x's device. One of no dimension is a number and needs no cast."""
    return coefficient if coefficient.dim() == 0 else coefficient.to(x.device, x.dtype, non_blocking=True)


class NoiseLevel(NamedTuple):
    """Where an image stands between clean and noise: x_t = alpha x + sigma ε.

    Each field is float64 on the host: of shape (B, 1, 1, 1), one level an image, or of no dimension, one for all.
    """

    t: Tensor
    log_snr: Tensor
    alpha: Tensor
    sigma: Tensor

    def perturb(self, x: Tensor, noise: Tensor) -> Tensor:
        """x_t = α x + σ ε, in x's type. x and noise: (B, C, H, W)."""
        return like(self.alpha, x) * x + like(self.sigma, x) * noise


class Geometry(ABC):
    """The line in the (α, σ) plane that a schedule's λ walks along; always α²/σ² = e^λ."""

    @abstractmethod
    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of λ, each of λ's shape."""

    def prior_std(self, log_snr_end: Tensor) -> float:
        """Standard deviation of p(x_T), given λ at t = 1."""
        return 1.0


class VariancePreserving(Geometry):
    """α² = sigmoid(λ), σ² = 1 − α²: unit-variance data keep unit variance. Ho et al., 2020."""

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


class Schedule(nn.Module, ABC):
    """A curve λ(t), t in [0, 1], and the geometry that turns λ into (α, σ)."""

    def __init__(self, geometry: Geometry | None = None) -> None:
        super().__init__()
        self.geometry = geometry or VariancePreserving()

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t), strictly falling; infinite at t = 0 where σ = 0. t: float64, any shape."""

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of λ in the declared geometry."""
        return self.geometry.scales(log_snr)

    @property
    def prior_std(self) -> float:
        """Standard deviation of p(x_T) = N(0, prior_std²)."""
        return self.geometry.prior_std(self.log_snr(torch.ones((), dtype=torch.float64)))

    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] whose λ(t) this is, by bisection to float64's last bits; the inverse of `log_snr`."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(64):
            middle = (low + high) / 2
            too_clean = self.log_snr(middle) > log_snr
            low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
        return (low + high) / 2

    def log_snr_rate(self, t: Tensor) -> Tensor:
        """dλ/dt, by automatic differentiation. t: float64, any shape."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (rate,) = torch.autograd.grad(self.log_snr(t).sum(), t)
        return rate

    def forward(self, t: Tensor) -> NoiseLevel:
        """The level at times t: (B,) gives fields of (B, 1, 1, 1); a time of no dimension gives numbers."""
        t = t.double().reshape(-1, 1, 1, 1) if t.dim() else t.double()
        log_snr = self.log_snr(t)
        return NoiseLevel(t, log_snr, *self.scales(log_snr))


class TabulatedBeta(Schedule, ABC):
    """A chain of T variances β_1..β_T, made continuous: log ᾱ is linear between the steps and exact at t = i/T.

    ᾱ_i = ∏_{j≤i} (1 − β_j) and λ = log ᾱ/(1 − ᾱ). Ho et al., "Denoising Diffusion Probabilistic Models" (2020),
    section 2. https://arxiv.org/abs/2006.11239
    """

    def __init__(self, beta: Tensor, geometry: Geometry | None = None) -> None:
        """beta: (T,) float64 in (0, 1)."""
        super().__init__(geometry)
        # A plain attribute, not a buffer: it must stay float64 on the host when the module is moved or halved.
        self._log_alpha_bar = torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)])

    @property
    def timesteps(self) -> int:
        """T, the length of the table."""
        return len(self._log_alpha_bar) - 1

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = (t * self.timesteps).floor().long().clamp(0, self.timesteps - 1)
        return index, t * self.timesteps - index

    def log_snr(self, t: Tensor) -> Tensor:
        index, fraction = self._segment(t)
        table = self._log_alpha_bar
        log_alpha_bar = torch.lerp(table[index], table[index + 1], fraction)
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    def time(self, log_snr: Tensor) -> Tensor:
        log_alpha_bar, falling = F.logsigmoid(log_snr), -self._log_alpha_bar
        index = (torch.searchsorted(falling, -log_alpha_bar.contiguous()) - 1).clamp(0, self.timesteps - 1)
        start, end = self._log_alpha_bar[index], self._log_alpha_bar[index + 1]
        return ((index + (log_alpha_bar - start) / (end - start)) / self.timesteps).clamp(0, 1)

    def log_snr_rate(self, t: Tensor) -> Tensor:
        index, fraction = self._segment(t)
        start, end = self._log_alpha_bar[index], self._log_alpha_bar[index + 1]
        # dλ/d log ᾱ = 1/(1 − ᾱ)
        return (end - start) * self.timesteps / -torch.expm1(torch.lerp(start, end, fraction))


def _require_timesteps(timesteps: int) -> None:
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")


class LinearBeta(TabulatedBeta):
    """β rises linearly from β_start to β_end, both scaled by 1000/T so that the noise at T does not depend on T.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), section 4. https://arxiv.org/abs/2006.11239
    The scaling is that of Nichol & Dhariwal, "Improved DDPM" (2021).
    """

    def __init__(
        self,
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        geometry: Geometry | None = None,
    ) -> None:
        _require_timesteps(timesteps)
        scale = 1000 / timesteps
        if not 0 < beta_start <= beta_end:
            raise ValueError(f"beta_start must be in (0, beta_end], got {beta_start} and beta_end {beta_end}")
        if scale * beta_end >= 1:
            raise ValueError(
                f"beta_end times 1000/timesteps must be below 1, got {scale * beta_end:g}: "
                f"lower beta_end or raise timesteps above {math.floor(1000 * beta_end)}"
            )
        beta = torch.linspace(scale * beta_start, scale * beta_end, timesteps, dtype=torch.float64)
        super().__init__(beta, geometry)


class Cosine(TabulatedBeta):
    """ᾱ(t) ∝ cos²((t + s)/(1 + s) π/2), each β kept at or below max_beta: less wasted on near-pure noise.

    Nichol & Dhariwal, "Improved DDPM" (2021), equation 17. https://arxiv.org/abs/2102.09672
    """

    def __init__(
        self,
        timesteps: int = 1000,
        offset: float = 0.008,
        max_beta: float = 0.999,
        geometry: Geometry | None = None,
    ) -> None:
        _require_timesteps(timesteps)
        if offset < 0:
            raise ValueError(f"offset must not be negative, got {offset}")
        if not 0 < max_beta < 1:
            raise ValueError(f"max_beta must be between 0 and 1, got {max_beta}")
        t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
        super().__init__((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta), geometry)
