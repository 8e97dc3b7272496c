"""The bound where it matters: steps drawn in proportion to how much their terms vary, as often as an error asks for.

A pilot of a few images tells how widely L_t varies; its losses are then forgotten, so that whatever it says the
estimate is unbiased, and only its variance is the pilot's. The number of draws is planned from it and then made: to
stop when the error looks small enough would favour the draws that look so.

Each of R replicates is a systematic sample of its own random shift, u_i = (i + U)/m through the inverse of the steps'
distribution, over images in an order of its own. One such sample admits no unbiased estimate of its variance; R
independent ones do, and Student's t gives the interval. Owen, "Monte Carlo theory, methods and examples" (2013),
chapters 8 to 10. https://artowen.su.domains/mc/
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noising.diffusion.bound_estimators import BoundEstimator, BoundPlan, ImageSet, Places, Stratified, evaluate
from noising.diffusion.bound_terms import BoundTerms
from noising.randomness import Streams, generator

__all__ = ["Adaptive", "AdaptivePlan", "Pilot"]

DEFENSIVE = 0.05
"""The share of the draws that is spread over the strata evenly, should the pilot have seen too little of one."""


class Pilot(NamedTuple):
    """What a few images tell of all; nats."""

    edges: Tensor
    """(K + 1,): stratum k holds the steps edges[k] .. edges[k + 1] − 1."""
    std: Tensor
    """(K,): the standard deviation of a term in the stratum, over images, noise and steps."""
    image_variance: float
    """The variance of an image's whole bound from image to image, of `images` of them."""
    images: int
    evaluations: int
    dims: int

    @property
    def shares(self) -> Tensor:
        """(K,): how many of the draws fall into each stratum, p_t ∝ std_t with a floor; they sum to 1."""
        size = self.std * self.edges.diff()
        even = torch.full_like(size, 1 / len(size))
        return (1 - DEFENSIVE) * size / size.sum() + DEFENSIVE * even if float(size.sum()) > 0 else even

    @property
    def variance(self) -> float:
        """That of one draw L_t/p_t about its step's mean, over images and noise; of m draws, the m-th part of it."""
        return float(((self.std * self.edges.diff()) ** 2 / self.shares).sum())


class Adaptive(BoundEstimator):
    """As many draws, at such steps, as the Monte Carlo standard error that is asked for needs."""

    def __init__(
        self,
        stderr: float = 0.01,
        replicates: int = 16,
        pilot_images: int = 64,
        pilot_times: int = 32,
        clip: float | None = 1.0,
    ) -> None:
        """stderr: bits/dim; replicates: independent samples, whose spread is the error; pilot_times: an image's."""
        super().__init__(clip)
        if not stderr > 0:
            raise ValueError(f"stderr must be positive, got {stderr}")
        if replicates < 8:
            raise ValueError(f"replicates must be at least 8 to tell an error from, got {replicates}")
        if pilot_images < 2:
            raise ValueError(f"pilot_images must be at least 2, got {pilot_images}")
        self.stderr = stderr
        self.replicates = replicates
        self.pilot_images = pilot_images
        self.pilot_times = pilot_times
        self._pilot = Stratified(pilot_times)

    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> AdaptivePlan:
        pilot: Pilot = self.pilot(terms, images)
        return AdaptivePlan(pilot if share is None else share(pilot), self.stderr, self.replicates, images)

    def pilot(self, terms: BoundTerms, images: ImageSet) -> Pilot:
        """Look at a few of the images, always the same, in one batch, whatever that of the evaluation is."""
        count = min(self.pilot_images, images.size)
        order = generator(images.seed, f"bound/{images.purpose}/pilot images").permutation(images.size)
        index = torch.from_numpy(order[:count].copy())
        apart = images._replace(purpose=f"{images.purpose}/pilot")
        plan = self._pilot.plan(terms, apart._replace(size=count))
        x, label = images.fetch(index)
        draws = evaluate(terms, plan, apart, index, x, label, at_once=count)
        values = draws.nats.reshape(count, plan.replicates, -1)  # one a stratum
        bounds = draws.prior[:, None] + values @ plan.edges.diff().double()
        spread = float(bounds.mean(1).var() - bounds.var(1).mean() / plan.replicates) if count > 1 else 0.0
        deviation = values.flatten(0, 1).std(0)
        return Pilot(plan.edges, deviation, max(spread, 0.0), count, plan.evaluations, draws.dims)


class AdaptivePlan(BoundPlan):
    """R systematic samples over shuffled images."""

    by_image = False

    def __init__(self, pilot: Pilot, stderr: float, replicates: int, images: ImageSet) -> None:
        """stderr: of the mean over the images, bits/dim."""
        self.pilot = pilot
        self.replicates = replicates
        self.draws = draws_needed(pilot, stderr * pilot.dims * math.log(2), replicates, images.size)
        self.evaluations = pilot.evaluations + replicates * self.draws
        self.image_variance = (pilot.image_variance / (pilot.dims * math.log(2)) ** 2, max(pilot.images - 1, 1))
        widths = pilot.edges.diff()
        chances = (pilot.shares / widths).repeat_interleave(widths).numpy()
        samples = [_systematic_sample(chances, self.draws, images, replicate) for replicate in range(replicates)]
        index, steps = (np.stack(parts).ravel() for parts in zip(*samples, strict=True))
        by_index = np.argsort(index, kind="stable")  # an image's draws lie together, replicate after replicate
        self._first = np.searchsorted(index[by_index], np.arange(images.size + 1))
        self._replicates = by_index // self.draws
        self._steps = steps[by_index]
        self._weights = images.size / (self.draws * chances[self._steps - 1])

    def places(self, index: Tensor, streams: Streams) -> Places:
        first, last = (self._first[index.numpy() + side] for side in (0, 1))
        rows = np.repeat(np.arange(len(index)), last - first)
        drawn = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]).astype(int)
        chosen = (table[drawn] for table in (self._replicates, self._steps, self._weights))
        return Places(torch.from_numpy(rows), *(torch.from_numpy(values) for values in chosen))


def draws_needed(pilot: Pilot, stderr: float, replicates: int, images: int) -> int:
    """Draws m of each replicate for that standard error, in nats, of their mean.

    With V the variance of a draw and A its part from image to image, which a replicate that takes all n images equally
    often does not have, the variance is (V − A)/m + A (1/m − 1/n) up to m = n, and (V − A)/m at multiples of n.
    """
    target = replicates * stderr**2
    between = min(pilot.image_variance, pilot.variance)
    few = pilot.variance / (target + between / images)
    if few <= images:
        return max(len(pilot.std), math.ceil(few))
    return images * math.ceil((pilot.variance - between) / (images * target))


def _systematic_sample(
    chances: np.ndarray, draws: int, images: ImageSet, replicate: int
) -> tuple[np.ndarray, np.ndarray]:
    """(images, steps), (m,) each: steps by chances (T,), rising; the images in random order, round after round."""
    random = generator(images.seed, f"bound/{images.purpose}/plan", replicate)
    places = (np.arange(draws) + random.random()) / draws
    cumulative = np.cumsum(chances)
    steps = 1 + np.searchsorted(cumulative / cumulative[-1], places, side="right").clip(max=len(chances) - 1)
    rounds = [random.permutation(images.size) for _ in range(math.ceil(draws / images.size))]
    return np.concatenate(rounds)[:draws], steps
