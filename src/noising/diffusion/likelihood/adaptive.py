"""Adaptive estimation of the bound: steps drawn in proportion to the spread of their terms, for a given standard error.

A pilot on a few images measures the standard deviation of L_t by stratum. Its losses are then discarded, so that the
estimate is unbiased for any pilot, which affects its variance only. The number of draws is fixed from the pilot
beforehand: to stop as soon as the estimated error is small enough would be biased.

Each of R replicates is a systematic sample with its own random shift U, u_i = (i + U)/m through the inverse
distribution function of the steps, over its own random order of the images. A single systematic sample has no unbiased
estimate of its variance; R independent ones do, and Student's t gives the interval. Owen, "Monte Carlo theory, methods
and examples" (2013), chapters 8 to 10. https://artowen.su.domains/mc/
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noising.diffusion.likelihood.estimators import (
    BoundEstimator,
    BoundPlan,
    DrawIndex,
    ImageSet,
    ImageSpread,
    Stratified,
    evaluate_draws,
)
from noising.diffusion.likelihood.terms import BoundTerms
from noising.errors import require
from noising.randomness import Streams, generator

DEFENSIVE = 0.05  # share of draws uniform over the strata, in case the pilot underestimates the spread of one
MAX_FULL_SUMS = 100  # upper limit of the evaluations, in multiples of those of all terms of all images
SMALLEST_SHARE = 4  # least average draws per stratum in a replicate, so that rounding to whole draws keeps the shares


class Pilot(NamedTuple):
    """Statistics of the terms of a few images of D = dims numbers each, in nats.

    edges: (K + 1,), stratum k holds the steps edges[k] .. edges[k + 1] − 1; std: (K,), standard deviation of a term
    about its step's mean in each stratum, over images and noise; image_variance: variance of the bound between images,
    Monte Carlo variance subtracted; raw_variance: the same with it; evaluations: the network's.
    """

    edges: Tensor
    std: Tensor
    image_variance: float
    raw_variance: float
    images: int
    evaluations: int
    dims: int

    @property
    def shares(self) -> Tensor:
        """(K,): share of the draws in each stratum, which sum to 1: p_t ∝ std_t, mixed with uniform shares."""
        size = self.std * self.edges.diff()
        even = torch.full_like(size, 1 / len(size))
        return (1 - DEFENSIVE) * size / size.sum() + DEFENSIVE * even if float(size.sum()) > 0 else even

    @property
    def variance(self) -> float:
        """Variance of one draw L_t/p_t about its step's mean, over images and noise."""
        return float(((self.std * self.edges.diff()) ** 2 / self.shares).sum())


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
        """stderr: of the mean, bits/dim; replicates: independent samples; pilot_times: draws of each pilot image."""
        super().__init__(clip)
        require(stderr > 0, f"stderr must be positive, got {stderr}")
        require(replicates >= 8, f"replicates must be at least 8 to tell an error from, got {replicates}")
        require(pilot_images >= 2, f"pilot_images must be at least 2, got {pilot_images}")
        self.stderr = stderr
        self.replicates = replicates
        self.pilot_images = pilot_images
        self.pilot_times = pilot_times
        self._pilot = Stratified(pilot_times)

    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> "AdaptivePlan":
        pilot: Pilot = self.pilot(terms, images)
        return AdaptivePlan(pilot if share is None else share(pilot), self.stderr, self.replicates, images)

    def pilot(self, terms: BoundTerms, images: ImageSet) -> Pilot:
        """Evaluate a fixed choice of few images, in one batch of their own."""
        count = min(self.pilot_images, images.size)
        order = generator(images.seed, f"bound/{images.purpose}/pilot images").permutation(images.size)
        index = torch.from_numpy(order[:count].copy())
        apart = images._replace(purpose=f"{images.purpose}/pilot")
        plan = self._pilot.plan(terms, apart._replace(size=count))
        x, label = images.fetch(index)
        draws = evaluate_draws(terms, plan, apart, index, x, label, at_once=count)
        values = draws.nats.reshape(count, plan.replicates, -1)  # one per stratum
        bounds = draws.prior[:, None] + values @ plan.strata.diff().double()
        raw = float(bounds.mean(1).var()) if count > 1 else 0.0
        between = max(raw - float(bounds.var(1).mean()) / plan.replicates, 0.0)
        steps = draws.places.step.reshape(values.shape).double()
        deviation = _std_about_line(values.flatten(0, 1), steps.flatten(0, 1))
        return Pilot(plan.strata, deviation, between, raw, max(count, 2), plan.evaluations, draws.dims)


class AdaptivePlan(BoundPlan):
    """R systematic samples over shuffled images."""

    by_image = False

    def __init__(self, pilot: Pilot, stderr: float, replicates: int, images: ImageSet) -> None:
        """stderr: of the mean over the images, bits/dim. Raises ValueError if it needs too many evaluations."""
        self.pilot = pilot
        self.replicates = replicates
        self.draws = draws_needed(pilot, stderr * pilot.dims * math.log(2), replicates, images.size)
        full = images.size * int(pilot.edges[-1] - 1)
        if replicates * self.draws > MAX_FULL_SUMS * full:
            raise ValueError(
                f"stderr={stderr:g} would take {replicates * self.draws:.2g} network evaluations, where all terms of "
                f"all images take {full:.2g}: ask for a larger one"
            )
        self.pilot_evaluations = pilot.evaluations
        self.evaluations = pilot.evaluations + replicates * self.draws
        self.even = self.draws % images.size == 0
        square = (pilot.dims * math.log(2)) ** 2
        self.image_spread = ImageSpread(pilot.image_variance / square, pilot.raw_variance / square, pilot.images - 1)
        counts = _whole(pilot.shares.numpy(), self.draws)
        samples = [_systematic_sample(pilot.edges.numpy(), counts, images, i) for i in range(replicates)]
        index, steps, weights = (np.stack(parts).ravel() for parts in zip(*samples, strict=True))
        by_index = np.argsort(index, kind="stable")  # the draws of an image together, replicate after replicate
        self._first = np.searchsorted(index[by_index], np.arange(images.size + 1))
        self._replicates = by_index // self.draws
        self._steps = steps[by_index]
        self._weights = images.size * weights[by_index]

    def places(self, index: Tensor, streams: Streams) -> DrawIndex:
        first, last = (self._first[index.numpy() + side] for side in (0, 1))
        rows = np.repeat(np.arange(len(index)), last - first)
        drawn = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]).astype(int)
        chosen = (rows, *(table[drawn] for table in (self._replicates, self._steps, self._weights)))
        return DrawIndex(*(torch.from_numpy(values) for values in chosen))


def draws_needed(pilot: Pilot, stderr: float, replicates: int, images: int) -> int:
    """Number of draws m in each replicate for a standard error, in nats, of the mean over replicates.

    With V the variance of a draw and A the part of it between images, which vanishes if a replicate takes all n images
    equally often, a replicate's variance is (V − A)/m + A (1/m − 1/n) up to m = n, and (V − A)/m at multiples of n.
    """
    target = replicates * stderr**2
    between = min(pilot.image_variance, pilot.variance)
    least = SMALLEST_SHARE * len(pilot.std)
    few = max(least, math.ceil(pilot.variance / (target + between / images)))
    if few <= images:
        return few
    return images * math.ceil(max(least, (pilot.variance - between) / target) / images)


def _std_about_line(values: Tensor, steps: Tensor) -> Tensor:
    """Standard deviation of values about their regression line in the steps: (n, K) both -> (K,).

    A systematic sample has no variance from a linear trend within a stratum.
    """
    y, x = values - values.mean(0), steps - steps.mean(0)
    explained = (y * x).sum(0) ** 2 / (x**2).sum(0).clamp(min=1e-9)
    return (((y**2).sum(0) - explained).clamp(min=0) / max(len(values) - 2, 1)).sqrt()


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
