"""Identities of a chain's steps and of its reverse variance."""

from collections.abc import Iterator

import torch

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import ReverseVariance
from noising.verification.identity import Identity, count, largest


@torch.no_grad()
def chain_identities(chain: Chain) -> Iterator[Identity]:
    """Check that forward steps compose to the closed form, and the posterior against Bayes' rule."""
    steps = torch.arange(1, len(chain) + 1)
    transition = chain[steps]
    one = torch.ones(len(chain), 1, 1, 1, dtype=torch.float64)
    step = transition.forward(one)
    mean, variance = 1.0, 0.0
    for factor, added in zip(step.mean.flatten().tolist(), step.log_variance.exp().flatten().tolist(), strict=True):
        mean, variance = mean * factor, variance * factor**2 + added
    end = chain.level(len(chain))
    yield Identity("schedule", "α_T by T forward steps", float(end.alpha), mean, 1e-9)
    yield Identity("schedule", "σ_T by T forward steps", float(end.sigma), variance**0.5, 1e-9 * float(end.sigma))

    later = chain[steps[1:]]  # the first step's posterior is a point
    x, x_s, x_t = (
        torch.randn(len(steps) - 1, 1, 1, 1, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        for n in range(3)
    )
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
        yield Identity("variance", "steps at which it falls as its output rises", 0, count(~(high > low)), 0)
    elif not variance.fitted:
        own = variance.log_variance(later, None) + 0 * small
        outside = ~((own >= small - 1e-9) & (own <= large + 1e-9))
        yield Identity("variance", "steps at which it is not between c σ_s² and c σ_t²", 0, count(outside), 0)
