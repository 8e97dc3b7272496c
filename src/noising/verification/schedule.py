"""Identities of a schedule: its curve, its geometry, its inverse and its rate."""

import math
from collections.abc import Iterator

import torch

from noising.diffusion.schedules import Schedule
from noising.verification.identity import Identity, count, largest


@torch.no_grad()
def schedule_identities(schedule: Schedule) -> Iterator[Identity]:
    """Check that λ falls, (α, σ) on the geometry's line, the curve's inverse and rate, and the noise at t = 1."""
    # between the steps of any table, where a tabulated curve has kinks
    t = (torch.arange(2000, dtype=torch.float64) + 0.4142) / 2000
    level = schedule(t)
    log_snr, alpha, sigma = level.log_snr.flatten(), level.alpha.flatten(), level.sigma.flatten()
    yield Identity("schedule", "steps of 2000 at which λ(t) does not fall", 0, count(~(log_snr.diff() < 0)), 0)
    off = 2 * (alpha.log() - sigma.log()) - log_snr
    yield Identity("schedule", "α²/σ² = e^λ, in log", 0, largest(off), 1e-9)
    measure = schedule.geometry.measure(alpha, sigma)
    yield Identity("schedule", f"(α, σ) on its line, {type(schedule.geometry).__name__}", 1, _furthest(measure), 1e-9)
    yield Identity("schedule", "time(λ(t)) = t", 0, largest(schedule.time(log_snr).cpu() - t), 1e-6)
    step = 1e-6
    difference = (schedule.log_snr(t + step) - schedule.log_snr(t - step)) / (2 * step)
    off = schedule.log_snr_rate(t) / difference - 1
    yield Identity("schedule", "dλ/dt against differences, relative", 0, largest(off[1:-1]), 1e-4)
    end, prior = schedule(torch.ones(1, dtype=torch.float64)), schedule.prior_std**2
    variance = float(end.alpha**2 * 0.25 + end.sigma**2) / prior
    divergence = 0.5 * (variance - 1 - math.log(variance)) / math.log(2)
    yield Identity("schedule", "noise left to tell at t = 1: KL(q(x_T) ‖ p(x_T)), bits/dim", 0, divergence, 1e-2)


def _furthest(measure: torch.Tensor) -> float:
    return float(measure[(measure - 1).abs().argmax()])
