"""Identities of the decoder and of the sampler."""

import copy
import math
from collections.abc import Iterator

import torch
from scipy.linalg import hadamard

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.grids import uniform
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.recipe import Recipe
from noising.diffusion.samplers import Sampler
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import Optimal
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian
from noising.verification.gaussian_data import STD
from noising.verification.identity import Identity, largest


@torch.no_grad()
def decoder_identities(decoder: Decoder, chain: Chain) -> Iterator[Identity]:
    """Check that the probabilities of grey levels sum to one; nothing for a decoder that is a density."""
    levels = getattr(decoder, "levels", None)
    if levels is None:
        return
    step = chain[1]
    means, greys = (torch.linspace(-end, end, n, dtype=torch.float64) for end, n in ((1.2, 49), (1, levels)))
    grey, mean = (pair.reshape(-1, 1, 1, 1) for pair in torch.cartesian_prod(greys, means).unbind(1))
    reverse = Gaussian(mean, step.small_log_variance)
    log_probs = decoder.log_prob(grey, reverse, step.later.alpha * mean, step.later).reshape(levels, -1)
    yield Identity("decoder", "Σ p(v | x_1) over the grey levels − 1", 0, largest(log_probs.exp().sum(0) - 1), 1e-6)


@torch.no_grad()
def sampler_identities(sampler: Sampler, recipe: Recipe) -> Iterator[Identity]:
    """Check that the standard deviation of samples of Gaussian data approaches the data's with more steps."""
    # below a hundred steps a sampler need not be near its limit yet
    fewer, more = max(sampler.steps, 100), 4 * max(sampler.steps, 100)
    off = abs(spread(sampler, recipe, fewer) - STD)
    measured = spread(sampler, recipe, more)
    # a first-order sampler keeps a quarter of the error; half is tolerated, if the error is small beside the data
    tolerance = max(min(0.5 * off, 0.1 * STD), 1e-4)
    yield Identity("sampler", f"std of samples of N(0, {STD}²), {more} steps", STD, measured, tolerance)


def spread(sampler: Sampler, recipe: Recipe, steps: int) -> float:
    """The exact standard deviation of a sampler's images of N(0, STD²).

    Each step is linear, so an image is a linear combination of its noises. If these are orthogonal vectors of pixels
    with unit mean square, the image's mean square over the pixels is the sum of the squared coefficients: its variance.
    """
    oracle = gaussian(STD)
    own = recipe.variance.outputs == 1 and not recipe.variance.fitted
    variance = recipe.variance if own else Optimal(error=oracle.error)
    denoiser = oracle_denoiser(oracle, recipe.schedule, recipe.parameterization, variance)
    finer = copy.copy(sampler)
    finer.steps, finer.clip = steps, None
    try:
        finer.chain(recipe.schedule)
    except ValueError:  # a grid of whole steps of the chain, which has too few
        finer.grid = uniform
    rows = 2 ** math.ceil(math.log2(steps + 2))
    noises = iter(torch.from_numpy(hadamard(rows)).double().reshape(rows, 1, 1, 1, rows))
    return float(finer(denoiser, lambda: next(noises)).square().mean().sqrt())
