"""Where a sampler steps: functions (steps, schedule) -> times (steps,), rising to 1; the step from the first ends at 0.

What a grid needs to know of the chain that was trained, its T, is bound to it beforehand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noising.diffusion.schedules import Schedule

__all__ = ["karras", "leading", "quadratic", "respaced", "trailing", "uniform", "uniform_log_snr"]


def uniform(steps: int, schedule: Schedule) -> Tensor:
    """t_i = i/S."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


def quadratic(steps: int, schedule: Schedule) -> Tensor:
    """t_i = (i/S)²: finer near clean. Song et al., "Denoising Diffusion Implicit Models" (2020), appendix D.2."""
    return uniform(steps, schedule) ** 2


def trailing(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Whole steps of the chain of T, every T/S from the last down; `uniform` where S divides T.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2023), table 2.
    https://arxiv.org/abs/2305.08891
    """
    _require_fewer(steps, timesteps)
    return torch.round(uniform(steps, schedule) * timesteps) / timesteps


def leading(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Whole steps of the chain of T, every ⌊T/S⌋ from the first up: the last is short of 1, where x_T is drawn.

    As DDIM's code has it, and diffusers by default with an offset of 0; Lin et al. (2023) say why not to.
    """
    _require_fewer(steps, timesteps)
    return (1 + torch.arange(steps, dtype=torch.float64) * (timesteps // steps)) / timesteps


def respaced(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Whole steps of the chain of T, evenly from the first to the last, both included.

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), section 4.
    https://arxiv.org/abs/2102.09672
    """
    _require_fewer(steps, timesteps)
    return torch.round(torch.linspace(timesteps, 1, steps, dtype=torch.float64)).flip(0) / timesteps


def uniform_log_snr(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Even in λ, from that of the chain's first step to that of its last. Lu et al., "DPM-Solver" (2022), section 3.2.

    https://arxiv.org/abs/2206.00927
    """
    clean, noisy = _ends(schedule, timesteps)
    return _times(torch.linspace(clean, noisy, steps, dtype=torch.float64), schedule)


def karras(steps: int, schedule: Schedule, timesteps: int, rho: float = 7.0) -> Tensor:
    """Even in (σ/α)^(1/ρ), between the same ends: Karras et al. (2022), equation 5. https://arxiv.org/abs/2206.00364"""
    if not 0.1 <= rho <= 1000:  # beyond, the powers leave the floating-point numbers
        raise ValueError(f"rho must lie between 0.1 and 1000, got {rho}")
    clean, noisy = (math.exp(-end / 2) ** (1 / rho) for end in _ends(schedule, timesteps))
    return _times(-2 * rho * torch.linspace(clean, noisy, steps, dtype=torch.float64).log(), schedule)


_NOISIEST = -2 * math.log(80)
"""λ that stands for −∞ among the ends: σ/α is 80 there, as where Karras et al. begin."""


def _ends(schedule: Schedule, timesteps: int) -> tuple[float, float]:
    """λ at the first step of the chain and at the last."""
    clean, noisy = schedule.log_snr(torch.tensor([1 / timesteps, 1.0], dtype=torch.float64)).tolist()
    return clean, noisy if math.isfinite(noisy) else _NOISIEST


def _times(log_snr: Tensor, schedule: Schedule) -> Tensor:
    """Their times, the last of which is 1 itself."""
    times: Tensor = schedule.time(log_snr).double().cpu()
    times[-1] = 1.0
    return times


def _require_fewer(steps: int, timesteps: int) -> None:
    if steps > timesteps:
        raise ValueError(f"steps={steps} is more than the {timesteps} whole steps of the chain: use grid=uniform")
