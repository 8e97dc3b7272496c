"""Adaptive estimation of the bound: steps drawn in proportion to the spread of their terms, for a given standard error.

A pilot on a few images measures the spread of L_t by stratum, and what of it control variates foresee. Its losses are
then discarded, so that the estimate is unbiased for any pilot, which affects its variance only. The number of draws is
fixed from the pilot beforehand: to stop as soon as the estimated error is small enough would be biased.

Each of R replicates is a systematic sample with its own random shift U, u_i = (i + U)/m through the inverse
distribution function of the steps, over its own random order of the images. A single systematic sample has no unbiased
estimate of its variance; R independent ones do, and Student's t gives the interval. Owen, "Monte Carlo theory, methods
and examples" (2013), chapters 8 to 10. https://artowen.su.domains/mc/

No more draws are taken than cost as much as all T terms of every image. Where that is too few, and these terms err
less, which they do by their noise alone, they are evaluated instead, with the error that the pilot foresees.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noising.diffusion.likelihood.controls import Controls, ControlVariates
from noising.diffusion.likelihood.estimators import BoundEstimator, BoundPlan, DrawIndex, StrataPlan, log_strata
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.pilot import ImageSpread, Pilot, VarianceEstimate, run_pilot
from noising.diffusion.likelihood.terms import BoundTerms
from noising.errors import require
from noising.randomness import Streams, generator

SMALLEST_SHARE = 4  # least average draws per stratum in a replicate, so that rounding to whole draws keeps the shares
PILOT_SHARE = 0.15  # of all evaluations, at most
PILOT_ERRORS = 4  # rows
GROWTH = 0.6  # of the draws that a pilot foresees: a larger one foresees fewer
LEAST_ROWS = 8  # of a pilot, where they cost less than that share of the full sum


class Adaptive(BoundEstimator):
    """Importance-sampled steps, in the number that a given Monte Carlo standard error needs."""

    def __init__(
        self,
        stderr: float = 0.01,
        replicates: int = 8,
        pilot_images: int = 32,
        pilot_times: int = 32,
        clip: float | None = 1.0,
    ) -> None:
        """Set the standard error that the bound shall have.

        stderr: of the mean, bits/dim; replicates: the fewest independent samples, at most twice as many are taken;
        pilot_images: the most images of the pilot, each at pilot_times/2 steps with two noises.
        """
        super().__init__(clip)
        require(1e-9 <= stderr <= 1e9, f"stderr must lie between 1e-9 and 1e9 bits/dim, got {stderr}")
        require(replicates >= 8, f"replicates must be at least 8 to estimate an error, got {replicates}")
        require(pilot_images >= 2, f"pilot_images must be at least 2, got {pilot_images}")
        even = pilot_times >= 4 and pilot_times % 2 == 0
        require(even, f"pilot_times must be an even number from 4, got {pilot_times}")
        self.stderr = stderr
        self.replicates = replicates
        self.pilot_images = pilot_images
        self.pilot_times = pilot_times

    def plan(
        self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None
    ) -> "AdaptivePlan | FullSum":
        variates = ControlVariates(images)
        pilot = self._pilot(terms, images, variates)
        pilot = pilot if share is None else share(pilot)
        controls, full = Controls(variates, pilot.edges, pilot.coefficients), images.size * terms.timesteps
        replicates, draws = self._draws(pilot, images)
        if pilot.evaluations + replicates * draws <= full:
            return AdaptivePlan(pilot, controls, replicates, draws, images)
        draws = (full - pilot.evaluations) // self.replicates  # as many as cost no more than all terms
        draws -= draws % images.size if draws > images.size else 0
        few = draws < SMALLEST_SHARE * len(pilot.spread)
        of_all_terms = pilot.noise_of_sum(slice(None)).value / images.size
        if few or of_all_terms < variance_of_draws(pilot, draws, images.size) / self.replicates:
            return FullSum(pilot, controls, images.size)
        plan = AdaptivePlan(pilot, controls, self.replicates, draws, images)
        plan.limited = True
        return plan

    def _pilot(self, terms: BoundTerms, images: ImageSet, variates: ControlVariates) -> Pilot:
        edges = log_strata(terms.timesteps, self.pilot_times // 2)

        def affordable(evaluations: float) -> int:
            return min(self.pilot_images, int(PILOT_SHARE * evaluations) // (2 * (len(edges) - 1)))

        most = affordable(images.size * terms.timesteps)

        def enough(pilot: Pilot) -> int:
            return min(most, affordable(GROWTH * math.prod(self._draws(pilot, images))))

        return run_pilot(terms, images, variates, edges, max(2, min(LEAST_ROWS, most)), enough)

    def _draws(self, pilot: Pilot, images: ImageSet) -> tuple[int, int]:
        return draws_needed(pilot, self.stderr * pilot.dims * math.log(2), self.replicates, images.size)


class AdaptivePlan(BoundPlan):
    """R systematic samples of m draws over shuffled images."""

    by_image = False

    def __init__(self, pilot: Pilot, controls: Controls | None, replicates: int, draws: int, images: ImageSet) -> None:
        """draws: of each replicate."""
        self.replicates, self.draws, self.controls = replicates, draws, controls
        self.pilot_evaluations = pilot.evaluations
        self.evaluations = pilot.evaluations + replicates * draws
        self.even = draws % images.size == 0
        self.image_spread = _in_bits(pilot)
        counts = _whole(pilot.shares.numpy(), draws)
        samples = [_systematic_sample(pilot.edges.numpy(), counts, images, i) for i in range(replicates)]
        index, steps, weights = (np.stack(parts).ravel() for parts in zip(*samples, strict=True))
        by_index = np.argsort(index, kind="stable")  # the draws of an image together, replicate after replicate
        self._first = np.searchsorted(index[by_index], np.arange(images.size + 1))
        self._replicates = by_index // draws
        self._steps = steps[by_index]
        self._weights = images.size * weights[by_index]

    def places(self, index: Tensor, streams: Streams) -> DrawIndex:
        first, last = (self._first[index.numpy() + side] for side in (0, 1))
        rows = np.repeat(np.arange(len(index)), last - first)
        drawn = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]).astype(int)
        chosen = (rows, *(table[drawn] for table in (self._replicates, self._steps, self._weights)))
        return DrawIndex(*(torch.from_numpy(values) for values in chosen))


class FullSum(StrataPlan):
    """All T terms of every image once, less control variates, with the error that a pilot foresees."""

    limited = True

    def __init__(self, pilot: Pilot, controls: Controls, images: int) -> None:
        super().__init__(torch.arange(1, int(pilot.edges[-1]) + 1), 1, images)
        self.controls = controls
        self.pilot_evaluations = pilot.evaluations
        self.evaluations += pilot.evaluations
        square = images * (pilot.dims * math.log(2)) ** 2
        parts = (pilot.noise_of_sum(strata) for strata in (slice(1, None), slice(0, 1), slice(None)))
        steps, decoder, both = (VarianceEstimate(part.value / square, part.freedom) for part in parts)
        self.noise = steps, decoder, both


def variance_of_draws(pilot: Pilot, draws: int, images: int) -> float:
    """The variance of a replicate of m draws, nats²; m at most the number of images n, or a multiple of it.

    With V the variance of a draw and A the part of it between images, which vanishes if a replicate takes all n images
    equally often, it is (V − A)/m + A (1/m − 1/n) up to m = n, and (V − A)/m at multiples of n.
    V is taken larger by 1 + 4/J: what a pilot of J rows errs by costs about as much (measured, on digits and MNIST).
    """
    variance, between = _parts(pilot)
    return (variance - between) / draws + between * max(1 / draws - 1 / images, 0)


def draws_needed(pilot: Pilot, stderr: float, replicates: int, images: int) -> tuple[int, int]:
    """Numbers of replicates and of draws in each for a standard error, in nats, of the mean over replicates."""
    variance, between = _parts(pilot)
    least = (1 / PILOT_SHARE - 1) * pilot.evaluations
    smallest = SMALLEST_SHARE * len(pilot.spread)
    few = math.ceil(max(least / replicates, smallest, variance / (replicates * stderr**2 + between / images)))
    if few <= images:
        return replicates, few
    total = max(least, (variance - between) / stderr**2)
    draws = images * max(math.ceil(smallest / images), int(total / (replicates * images)))
    return max(replicates, math.ceil(total / draws)), draws


def _parts(pilot: Pilot) -> tuple[float, float]:
    """V and A of `variance_of_draws`."""
    variance = pilot.variance * (1 + PILOT_ERRORS / pilot.rows)
    return variance, min(pilot.image_variance, variance)


def _in_bits(pilot: Pilot) -> ImageSpread | None:
    """The spread of the images in (bits/dim)²."""
    if pilot.image_spread is None:
        return None
    square = (pilot.dims * math.log(2)) ** 2
    variance, raw, freedom = pilot.image_spread
    return ImageSpread(variance / square, raw / square, freedom)


def _whole(shares: np.ndarray, draws: int) -> np.ndarray:
    """Shares (K,) of the draws as whole numbers, at least 1 each, that sum to `draws`.

    The numbers are fixed: if they were random, the mean of a stratum's terms would add to the error.
    """
    exact = shares * (draws - len(shares))
    counts: np.ndarray = 1 + np.floor(exact).astype(int)
    counts[np.argsort(np.floor(exact) - exact)[: draws - counts.sum()]] += 1
    return counts


def _systematic_sample(
    edges: np.ndarray, counts: np.ndarray, images: ImageSet, replicate: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, steps and weights 1/(m p_t) of m draws, counts[k] in stratum k, evenly spaced from a random shift.

    The steps rise; the images come in a new random order in each round over all of them.
    """
    random = generator(images.seed, f"bound/{images.purpose}/plan", replicate)
    widths = np.diff(edges)
    stratum = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(stratum)) - np.repeat(np.cumsum(counts) - counts, counts)
    steps = edges[stratum] + ((within + random.random()) / counts[stratum] * widths[stratum]).astype(int)
    rounds = [random.permutation(images.size) for _ in range(math.ceil(len(stratum) / images.size))]
    return np.concatenate(rounds)[: len(stratum)], steps, (widths / counts)[stratum]
