"""The bound of Gaussian data without Monte Carlo error, from four pixels with the exact second moments of x and ε.

For a linear denoiser every term of the bound and every loss is a quadratic in (x, ε), so its mean over x = ±s, ε = ±1
is exactly its expectation.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.likelihood.decoders import PlainGaussian
from noising.diffusion.likelihood.terms import ModelTerms
from noising.diffusion.recipe import Recipe
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedSmall, Optimal
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian
from noising.verification.identity import Identity

STD = 0.5  # standard deviation of the data, about that of pixels in [−1, 1]


def exact_images(std: float = STD) -> Tensor:
    """x = ±std in four pixels: (1, 1, 2, 2) float64."""
    return std * torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]], dtype=torch.float64)


def exact_noise() -> Tensor:
    """ε = ±1 in four pixels, uncorrelated with `exact_images`: (1, 1, 2, 2) float64."""
    return torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]], dtype=torch.float64)


class ExpectedBound(NamedTuple):
    """The expectation of every term in bits/dim; steps: (T − 1,), for t = 2..T."""

    prior: float
    steps: Tensor
    decoder: float

    @property
    def total(self) -> float:
        """The whole bound, bits/dim."""
        return self.prior + float(self.steps.sum()) + self.decoder


@torch.no_grad()
def expected_bound(denoiser: Denoiser, chain: Chain, std: float = STD) -> ExpectedBound:
    """The bound of N(0, std²) with the plain Gaussian decoder, for a linear denoiser."""
    terms, bits = ModelTerms(denoiser, chain, PlainGaussian()), 4 * math.log(2)
    x, noise = (v.expand(len(chain), -1, -1, -1) for v in (exact_images(std), exact_noise()))
    nats = terms.at(x, torch.arange(1, len(chain) + 1), noise).nats
    return ExpectedBound(float(terms.prior(x[:1])) / bits, nats[1:] / bits, float(nats[0]) / bits)


def bound_identities(recipe: Recipe, chain: Chain) -> Iterator[Identity]:
    """Check that the bound is entropy + KL(q(x_T) ‖ p(x_T)) with the optimal variance, and its excess with another."""
    oracle, end = gaussian(STD), chain.level(len(chain))
    best = oracle_denoiser(oracle, recipe.schedule, recipe.parameterization, Optimal(error=oracle.error))
    ratio = float(end.alpha**2 * STD**2 + end.sigma**2) / chain.schedule.prior_std**2
    truth = (oracle.entropy + 0.5 * (ratio - 1 - math.log(ratio))) / math.log(2)
    total = expected_bound(best, chain).total
    yield Identity("schedule", "bound of Gaussian data, best variance = entropy + KL, bits/dim", truth, total, 1e-6)
    if recipe.variance.outputs == 1 and not recipe.variance.fitted:
        own = oracle_denoiser(oracle, recipe.schedule, recipe.parameterization, recipe.variance)
        excess = expected_bound(own, chain).total - total
        name, gap = f"bits/dim that {type(recipe.variance).__name__} adds to that bound", _gap(recipe, chain)
        yield Identity("variance", name, gap, excess, 1e-6 * max(1, abs(gap)))
    if len(chain) > 1:  # one step has no posterior to compare with
        yield _limit(recipe, chain)


def _gap(recipe: Recipe, chain: Chain) -> float:
    """Σ KL(N(·, v*) ‖ N(·, v)) in bits/dim, v* the variance of x_s given x_t and v that of the reverse step."""
    step = chain[torch.arange(1, len(chain) + 1)]
    t, s = step.later, step.earlier
    # from the covariance of two jointly Gaussian variables, without the code under test
    covariance = t.alpha / s.alpha * (s.alpha**2 * STD**2 + s.sigma**2)
    best = s.alpha**2 * STD**2 + s.sigma**2 - covariance**2 / (t.alpha**2 * STD**2 + t.sigma**2)
    ratio = best / recipe.variance.log_variance(step, None).exp()
    return float((0.5 * (ratio - 1 - ratio.log())).sum()) / math.log(2)


def _limit(recipe: Recipe, chain: Chain) -> Identity:
    """Check that the excess of Σ KL over ½ ∫ mmse d(α²/σ²) halves as the steps double."""
    first, doublings = float(chain.times[1]), max(0, math.ceil(math.log2(1000 / len(chain))))
    best = oracle_denoiser(gaussian(STD), recipe.schedule, recipe.parameterization, FixedSmall())
    excess = []
    for refined in (2**doublings, 2 ** (doublings + 1)):
        times = first + (1 - first) * torch.linspace(0, 1, refined * len(chain), dtype=torch.float64)
        finer = Chain(recipe.schedule, times)
        clean, noisy = (STD**2 * finer.level(i).log_snr.exp() for i in (1, len(finer)))
        limit = 0.5 * float(torch.log1p(clean) - torch.log1p(noisy)) / math.log(2)
        excess.append(float(expected_bound(best, finer).steps.sum()) - limit)
    name = "excess of Σ L_t over its limit: ratio, after / before doubling T"
    return Identity("schedule", name, 0.5, excess[1] / excess[0], 0.1)
