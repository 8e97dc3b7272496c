"""Sampling grids: functions (steps, schedule) -> times (steps,) float64, rising to 1.

A sampler walks the times from the last down; its final step leads from the first to t = 0. `timesteps`, where a grid
has it, is the T of the chain that was trained; the config binds it.
"""

import math

import torch
from torch import Tensor

from noising.diffusion.schedules import Schedule
from noising.errors import require

_NOISIEST = -2 * math.log(80)  # λ that replaces −∞ as a grid's noisy end: σ/α = 80, where Karras et al. begin


def uniform(steps: int, schedule: Schedule) -> Tensor:
    """t_i = i/S."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


def quadratic(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Uniform in √t from the chain's first step to its last: denser near clean, and never nearer than was trained.

    Song et al., "Denoising Diffusion Implicit Models" (2020), appendix D.2. https://arxiv.org/abs/2010.02502
    """
    roots = torch.linspace(timesteps**-0.5, 1, steps, dtype=torch.float64)
    roots[-1] = 1.0  # of a single step too
    return roots**2


def trailing(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Every (T/S)-th step of the chain, rounded, from the last down; equal to `uniform` where S divides T.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2023), table 2.
    https://arxiv.org/abs/2305.08891
    """
    _require_fewer(steps, timesteps)
    return torch.round(uniform(steps, schedule) * timesteps) / timesteps


def leading(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Every ⌊T/S⌋-th step of the chain from the first up. The last is below 1, though x_T is drawn for t = 1.

    The grid of DDIM's code, and of diffusers with its default offset of 0. Lin et al. (2023) show why not to use it.
    """
    _require_fewer(steps, timesteps)
    return (1 + torch.arange(steps, dtype=torch.float64) * (timesteps // steps)) / timesteps


def respaced(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Steps of the chain, evenly spaced from the first to the last inclusive, rounded.

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), section 4.
    https://arxiv.org/abs/2102.09672
    """
    _require_fewer(steps, timesteps)
    return torch.round(torch.linspace(timesteps, 1, steps, dtype=torch.float64)).flip(0) / timesteps


def uniform_log_snr(steps: int, schedule: Schedule, timesteps: int) -> Tensor:
    """Uniform in λ from the chain's first step to its last. Lu et al., "DPM-Solver" (2022), section 3.2.

    https://arxiv.org/abs/2206.00927
    """
    clean, noisy = _ends(schedule, timesteps)
    return _times(torch.linspace(clean, noisy, steps, dtype=torch.float64), schedule)


def karras(steps: int, schedule: Schedule, timesteps: int, rho: float = 7.0) -> Tensor:
    """Uniform in (σ/α)^(1/ρ) from the chain's first step to its last. Karras et al. (2022), equation 5.

    https://arxiv.org/abs/2206.00364
    """
    require(0.1 <= rho <= 1000, f"rho must lie between 0.1 and 1000, got {rho}")  # beyond, the powers overflow
    clean, noisy = (math.exp(-end / 2) ** (1 / rho) for end in _ends(schedule, timesteps))
    return _times(-2 * rho * torch.linspace(clean, noisy, steps, dtype=torch.float64).log(), schedule)


def _ends(schedule: Schedule, timesteps: int) -> tuple[float, float]:
    """λ at the chain's first and last step."""
    clean, noisy = schedule.log_snr(torch.tensor([1 / timesteps, 1.0], dtype=torch.float64)).tolist()
    return clean, noisy if math.isfinite(noisy) else _NOISIEST


def _times(log_snr: Tensor, schedule: Schedule) -> Tensor:
    """The times of λ (S,), the last set to exactly 1."""
    times: Tensor = schedule.time(log_snr).double().cpu()
    times[-1] = 1.0
    return times


def _require_fewer(steps: int, timesteps: int) -> None:
    message = f"steps={steps} is more than the {timesteps} whole steps of the chain: use grid=uniform"
    require(steps <= timesteps, message)
