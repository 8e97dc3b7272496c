"""Identities of a schedule, of the steps of its chain, and of their reverse variance."""

import math
from collections.abc import Iterator

import torch

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import ReverseVariance
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
    on_line = schedule.geometry.measure(alpha, sigma)
    furthest = float(on_line[(on_line - 1).abs().argmax()])
    yield Identity("schedule", f"(α, σ) on its line, {type(schedule.geometry).__name__}", 1, furthest, 1e-9)
    yield Identity("schedule", "time(λ(t)) = t", 0, largest(schedule.time(log_snr).cpu() - t), 1e-6)
    step = 1e-6
    difference = (schedule.log_snr(t + step) - schedule.log_snr(t - step)) / (2 * step)
    off = schedule.log_snr_rate(t) / difference - 1
    yield Identity("schedule", "dλ/dt against differences, relative", 0, largest(off[1:-1]), 1e-4)
    end, prior = schedule(torch.ones(1, dtype=torch.float64)), schedule.prior_std**2
    variance = float(end.alpha**2 * 0.25 + end.sigma**2) / prior
    divergence = 0.5 * (variance - 1 - math.log(variance)) / math.log(2)
    yield Identity("schedule", "signal left at t = 1: KL(q(x_T) ‖ p(x_T)), bits/dim", 0, divergence, 1e-2)


@torch.no_grad()
def chain_identities(chain: Chain) -> Iterator[Identity]:
    """Check that forward steps compose to the closed form, and the posterior against Bayes' rule."""
    steps = torch.arange(1, len(chain) + 1)
    step = chain[steps].forward(torch.ones(len(chain), 1, 1, 1, dtype=torch.float64))
    mean, variance = 1.0, 0.0
    for factor, added in zip(step.mean.flatten().tolist(), step.log_variance.exp().flatten().tolist(), strict=True):
        mean, variance = mean * factor, variance * factor**2 + added
    end = chain.level(len(chain))
    yield Identity("schedule", "α_T by T forward steps", float(end.alpha), mean, 1e-9)
    yield Identity("schedule", "σ_T by T forward steps", float(end.sigma), variance**0.5, 1e-9 * float(end.sigma))

    later = chain[steps[1:]]  # the first step's posterior is a point
    draws = (torch.Generator().manual_seed(n) for n in range(3))
    x, x_s, x_t = (torch.randn(len(steps) - 1, 1, 1, 1, generator=draw, dtype=torch.float64) for draw in draws)
    x_s, x_t = later.earlier.perturb(x, x_s), later.later.perturb(x, x_t)
    marginals = (Gaussian(level.alpha * x, 2 * level.sigma.log()) for level in (later.earlier, later.later))
    q_s, q_t = (q.log_prob(y) for q, y in zip(marginals, (x_s, x_t), strict=True))
    forward, posterior = later.forward(x_s).log_prob(x_t), later.posterior(x_t, x).log_prob(x_s)
    off = (posterior + q_t - forward - q_s) / (1 + forward.abs())
    yield Identity("schedule", "Bayes: q(x_s|x_t,x) q(x_t|x) = q(x_t|x_s) q(x_s|x), in log", 0, largest(off), 1e-6)


@torch.no_grad()
def variance_identities(variance: ReverseVariance, chain: Chain) -> Iterator[Identity]:
    """Check c σ_s² ≤ c σ_t², that a fixed variance lies between them, and that a learned one rises with its output."""
    later = chain[torch.arange(2, len(chain) + 1)]
    small, large = later.small_log_variance, later.large_log_variance
    yield Identity("variance", "steps at which c σ_s² > c σ_t²", 0, count(small > large + 1e-12), 0)
    if variance.outputs > 1:
        low, high = (variance.log_variance(later, torch.full_like(small, raw)) + 0 * small for raw in (-1.0, 1.0))
        yield Identity("variance", "steps at which it does not rise with its output", 0, count(~(high > low)), 0)
    elif not variance.fitted:
        own = variance.log_variance(later, None) + 0 * small
        outside = ~((own >= small - 1e-9) & (own <= large + 1e-9))
        yield Identity("variance", "steps at which it is not between c σ_s² and c σ_t²", 0, count(outside), 0)
