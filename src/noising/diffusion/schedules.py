"""Noise schedules: which noise level an image stands at, at time t in [0, 1].

A schedule is a curve λ(t), falling from clean (t = 0) to noise (t = 1), and a geometry, the line that turns λ into
(α, σ). Here are the interface and the curves with a formula; `tabulated_schedules` has those that are chains of β,
`learned_schedules` the one that is a network, `schedule_wrappers` what changes another schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from noising.diffusion.levels import Geometry, NoiseLevel, Straight, VarianceExploding, VariancePreserving

__all__ = ["LinearLogSNR", "LogLinearSigma", "RectifiedFlow", "Schedule", "SigmoidAlphaBar"]


class Schedule(nn.Module, ABC):
    """A curve λ(t), t in [0, 1], and the geometry that turns λ into (α, σ)."""

    def __init__(self, geometry: Geometry | None = None) -> None:
        super().__init__()
        self.geometry = geometry or VariancePreserving()

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t), strictly falling; +∞ where σ = 0, −∞ where α = 0. t: float64, any shape."""

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of λ in the declared geometry."""
        return self.geometry.scales(log_snr)

    @property
    def prior_std(self) -> float:
        """Standard deviation of p(x_T) = N(0, prior_std²)."""
        return self.geometry.prior_std(self.log_snr(torch.ones((), dtype=torch.float64)))

    @torch.no_grad()
    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] whose λ(t) this is, by bisection to float64's last bits; the inverse of `log_snr`."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(64):
            middle = (low + high) / 2
            too_clean = self.log_snr(middle).to(log_snr.device) > log_snr
            low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
        return (low + high) / 2

    def log_snr_rate(self, t: Tensor) -> Tensor:
        """dλ/dt, by automatic differentiation; itself differentiable where the schedule is learned. t: any shape."""
        learned = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (rate,) = torch.autograd.grad(self.log_snr(t).sum(), t, create_graph=learned)
        return rate

    def forward(self, t: Tensor) -> NoiseLevel:
        """The level at times t: (B,) gives fields of (B, 1, 1, 1); a time of no dimension gives numbers."""
        t = t.double().reshape(-1, 1, 1, 1) if t.dim() else t.double()
        log_snr = self.log_snr(t)
        return NoiseLevel(t, log_snr, *self.scales(log_snr))


class LinearLogSNR(Schedule):
    """λ falls on a straight line from log_snr_max to log_snr_min.

    Kingma et al., "Variational Diffusion Models" (2021), appendix H; with these ends, their fixed schedule.
    https://arxiv.org/abs/2107.00630
    """

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, geometry: Geometry | None = None) -> None:
        super().__init__(geometry)
        require_falling(log_snr_max, log_snr_min)
        self.log_snr_max = log_snr_max
        self.log_snr_min = log_snr_min

    def log_snr(self, t: Tensor) -> Tensor:
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * t

    def time(self, log_snr: Tensor) -> Tensor:
        return ((log_snr - self.log_snr_max) / (self.log_snr_min - self.log_snr_max)).clamp(0, 1)


class LogLinearSigma(Schedule):
    """log σ rises on a straight line from log sigma_min to log sigma_max, variance-exploding: σ = e^(−λ/2).

    The levels of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), with the
    spacing of Song et al.'s variance-exploding path; where to train and step is said elsewhere.
    https://arxiv.org/abs/2206.00364
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(VarianceExploding())
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min must be in (0, sigma_max), got {sigma_min} and sigma_max {sigma_max}")
        self.log_sigma_min = math.log(sigma_min)
        self.log_sigma_max = math.log(sigma_max)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self.log_sigma_min + (self.log_sigma_max - self.log_sigma_min) * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr / 2 - self.log_sigma_min) / (self.log_sigma_max - self.log_sigma_min)).clamp(0, 1)


class RectifiedFlow(Schedule):
    """σ = t, α = 1 − t: the straight line at even speed, from the image itself to nothing but noise.

    Liu et al., "Flow Straight and Fast" (2022). https://arxiv.org/abs/2209.03003
    """

    def __init__(self) -> None:
        super().__init__(Straight())

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - torch.log(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


class SigmoidAlphaBar(Schedule):
    """α² falls as a sigmoid, cut out between start and end and stretched to [0, 1]; smallest is what is left at t = 1.

    Not `SigmoidBeta`, whose β, not whose α², is a sigmoid. Jabri et al., "Scalable Adaptive Computation for Iterative
    Generation" (2022). https://arxiv.org/abs/2212.11972
    """

    def __init__(
        self,
        start: float = -3.0,
        end: float = 3.0,
        temperature: float = 1.0,
        smallest: float = 1e-9,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__(geometry)
        if not start < end:
            raise ValueError(f"start must be below end, got {start} and {end}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if max(abs(start), abs(end)) > 1000 * temperature:
            raise ValueError(
                f"start and end must lie within 1000 temperatures of 0, got {start}, {end} and {temperature}"
            )
        if not 0 < smallest < 1:
            raise ValueError(f"smallest must be between 0 and 1, got {smallest}")
        self.start, self.end = start / temperature, end / temperature
        self.log_snr_min = math.log(smallest) - math.log1p(-smallest)

    def log_snr(self, t: Tensor) -> Tensor:
        # differences of sigmoids through sinh, which keep their digits at both ends
        left, gone = (self.end - self.start) * (1 - t) / 2, (self.end - self.start) * t / 2
        left = left.clamp(min=1e-300)  # below `smallest` anyway; log 0 would have no derivative
        ends = math.log(math.cosh(self.start / 2)) - math.log(math.cosh(self.end / 2))
        return (torch.sinh(left).log() - torch.sinh(gone).log() + ends).clamp(min=self.log_snr_min)


def require_falling(log_snr_max: float, log_snr_min: float) -> None:
    """Raise ValueError unless the first is above the second."""
    if not log_snr_max > log_snr_min:
        raise ValueError(f"log_snr_max must be above log_snr_min, got {log_snr_max} and {log_snr_min}")
