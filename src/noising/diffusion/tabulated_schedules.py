"""Schedules that are a chain of T variances β_1..β_T: those of DDPM and of what grew from it."""

from __future__ import annotations

import math
from abc import ABC

import torch
from torch import Tensor
from torch.nn import functional as F

from noising.diffusion.levels import Geometry
from noising.diffusion.schedules import Schedule

__all__ = ["Cosine", "LinearBeta", "ScaledLinearBeta", "SigmoidBeta", "TabulatedBeta"]


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


def _scaled_ends(timesteps: int, beta_start: float, beta_end: float) -> tuple[float, float]:
    """The ends of β for T steps, from those for 1000. Nichol & Dhariwal, "Improved DDPM" (2021)."""
    _require_timesteps(timesteps)
    scale = 1000 / timesteps
    if not 0 < beta_start <= beta_end:
        raise ValueError(f"beta_start must be in (0, beta_end], got {beta_start} and beta_end {beta_end}")
    if scale * beta_end >= 1:
        raise ValueError(
            f"beta_end times 1000/timesteps must be below 1, got {scale * beta_end:g}: "
            f"lower beta_end or raise timesteps above {1000 * beta_end:g}"
        )
    return scale * beta_start, scale * beta_end


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
        start, end = _scaled_ends(timesteps, beta_start, beta_end)
        super().__init__(torch.linspace(start, end, timesteps, dtype=torch.float64), geometry)


class ScaledLinearBeta(TabulatedBeta):
    """√β rises linearly: gentler near clean. β_start and β_end are scaled by 1000/T, as in `LinearBeta`.

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2021).
    https://arxiv.org/abs/2112.10752
    """

    def __init__(
        self,
        timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        geometry: Geometry | None = None,
    ) -> None:
        start, end = _scaled_ends(timesteps, beta_start, beta_end)
        roots = torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64)
        super().__init__(roots**2, geometry)


class SigmoidBeta(TabulatedBeta):
    """β rises as a sigmoid over (−6, 6) from β_start to β_end, both scaled by 1000/T, as in `LinearBeta`.

    Not `SigmoidAlphaBar`, whose α², not whose β, is a sigmoid. Xu et al., "GeoDiff" (2022).
    https://arxiv.org/abs/2203.02923
    """

    def __init__(
        self,
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        geometry: Geometry | None = None,
    ) -> None:
        start, end = _scaled_ends(timesteps, beta_start, beta_end)
        rise = torch.sigmoid(torch.linspace(-6, 6, timesteps, dtype=torch.float64))
        super().__init__(start + (end - start) * rise, geometry)


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
