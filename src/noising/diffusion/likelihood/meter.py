"""The bound from its draws: its mean, its terms, how sure each is, and where in the chain the bits lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from noising.diffusion.likelihood.estimators import (
    BoundDraws,
    BoundEstimator,
    BoundPlan,
    ImageSet,
    ImageSpread,
    evaluate_draws,
    log_strata,
)
from noising.diffusion.likelihood.terms import BoundTerms

__all__ = ["BoundCurve", "BoundMeter", "evaluate_bound"]


BINS = 120
"""Of the steps, for the curves."""
MIN_DRAWS = 64
"""Draws in a bin that is shown: neighbours are joined until they have so many."""
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


class BoundCurve(NamedTuple):
    """The bound by step, in K bins of steps; float64."""

    edges: Tensor
    """(K + 1,): bin k holds the steps edges[k] .. edges[k + 1] − 1; the first bin is step 1 alone, the decoder's."""
    bits: Tensor
    """(K,): bits/dim of one step, the mean within the bin."""
    stderr: Tensor
    """(K,): its Monte Carlo standard error, images included."""
    error: Tensor
    """(K,): E‖x − x̂‖²/D within the bin, in the images' own units, [−1, 1]."""


class BoundMeter:
    """Sums over images, from which all numbers follow; the sums of several ranks add up."""

    def __init__(self, plan: BoundPlan, timesteps: int) -> None:
        self.plan = plan
        self.timesteps = timesteps
        self._edges = log_strata(timesteps, BINS)
        bins = len(self._edges) - 1
        self._images = torch.zeros(8, dtype=torch.float64)
        self._replicates = torch.zeros(plan.replicates, 2, dtype=torch.float64)
        self._bins = torch.zeros(4, bins, dtype=torch.float64)

    def update(self, draws: BoundDraws) -> None:
        """Add some images."""
        nats = draws.dims * math.log(2)
        row, replicate, step, weight = draws.places
        bits = draws.nats / nats * weight
        prior, floor = draws.prior / nats, draws.floor / nats
        table = torch.zeros(len(prior), self.plan.replicates, 2, dtype=torch.float64)  # steps, decoder
        table.index_put_((row, replicate, (step == 1).long()), bits, accumulate=True)
        self._replicates += table.sum(0)
        which = torch.searchsorted(self._edges, step, right=True) - 1
        for sums, values in zip(self._bins, (torch.ones_like(bits), bits, bits**2, draws.error), strict=True):
            sums.index_add_(0, which, values)
        means = prior + table.sum(2).mean(1)
        moments = [torch.ones_like(prior), prior, floor, means, means**2]
        moments += [_variance_of_mean(values) for values in (table[..., 0], table[..., 1], table.sum(2))]
        self._images += torch.stack([moment.sum() for moment in moments])

    @property
    def sums(self) -> Tensor:
        """Everything this meter knows, one vector: add those of several ranks."""
        return torch.cat([self._images, self._replicates.flatten(), self._bins.flatten()])

    def merge(self, sums: Tensor) -> None:
        """Replace the sums by those over all ranks."""
        parts = torch.split(sums, [self._images.numel(), self._replicates.numel(), self._bins.numel()])
        self._images = parts[0]
        self._replicates = parts[1].reshape_as(self._replicates)
        self._bins = parts[2].reshape_as(self._bins)

    @property
    def images(self) -> int:
        """How many images were seen."""
        return int(self._images[0])

    def compute(self) -> dict[str, float]:
        """bits/dim: bound, prior, steps, decoder, and the least decoder term possible; *_mc_se over times and noise.

        low, high: the 95% interval of the bound of these very images; image_se: over images as draws from a population,
        of whose bound population_low, _high is the interval. What cannot be told (from one image, say) is nan.
        """
        if not self.images:
            raise ValueError("the bound has seen no image")
        n, prior, floor = self._images[:3].tolist()
        steps, decoder = (self._replicates.mean(0) / n).tolist()
        bound = prior / n + steps + decoder
        (steps_error, decoder_error, mc), images = self._monte_carlo(), self._over_images()
        both = mc.together(images)
        return {
            "bound": bound,
            "bound_mc_se": mc.stderr,
            "bound_image_se": images.stderr,
            "bound_low": bound - mc.half_width,
            "bound_high": bound + mc.half_width,
            "bound_population_low": bound - both.half_width,
            "bound_population_high": bound + both.half_width,
            "prior": prior / n,
            "steps": steps,
            "steps_mc_se": steps_error.stderr,
            "decoder": decoder,
            "decoder_mc_se": decoder_error.stderr,
            "decoder_floor": floor / n,
        }

    def _monte_carlo(self) -> list[_Error]:
        """Of the steps, the decoder and their sum, about the mean of these images."""
        replicates = self.plan.replicates
        if replicates == 1:
            return [_Error(math.nan, 1)] * 3
        n = self._images[0]
        if self.plan.by_image:
            freedom = int(n) * (replicates - 1)
            return [_Error(math.sqrt(float(variance)) / float(n), freedom) for variance in self._images[5:8]]
        means = torch.cat([self._replicates, self._replicates.sum(1, keepdim=True)], 1) / n
        return [_Error(math.sqrt(float(variance) / replicates), replicates - 1) for variance in means.var(0)]

    def _over_images(self) -> _Error:
        """Of the mean over images, had each been evaluated without error: by the draws or the pilot, the surer."""
        n, _, _, total, square, _, _, within = self._images.tolist()
        spreads = [] if self.plan.image_spread is None else [self.plan.image_spread]
        if self.plan.even and n > 1:
            raw = max(square / n - (total / n) ** 2, 0.0) * n / (n - 1)
            noise = within / n if math.isfinite(within) else 0.0
            spreads.append(ImageSpread(max(raw - noise, 0.0), raw, int(n) - 1))
        if not spreads or n == 1:
            return _Error(math.nan, 1)
        surest = min(spreads, key=lambda spread: spread.uncertainty)
        return _Error(math.sqrt(surest.variance / n), surest.freedom)

    def curve(self) -> BoundCurve:
        """Where the bits lie; neighbouring bins are joined until each has draws enough."""
        weight = float(self._images[0]) * self.plan.replicates
        edges, bins = [1, 2], [self._bins[:, 0]]
        waiting = torch.zeros(4, dtype=torch.float64)
        for right, sums in zip(self._edges[2:].tolist(), self._bins[:, 1:].T, strict=True):
            waiting = waiting + sums
            if waiting[0] >= MIN_DRAWS:
                edges, bins, waiting = [*edges, right], [*bins, waiting], torch.zeros_like(waiting)
        if edges[-1] <= self.timesteps:  # what is left goes to the last one
            if len(bins) > 1 and waiting[0] < MIN_DRAWS:
                edges[-1], bins[-1] = self.timesteps + 1, bins[-1] + waiting
            else:
                edges, bins = [*edges, self.timesteps + 1], [*bins, waiting]
        count, total, square, error = torch.stack(bins, 1)
        widths = torch.tensor(edges).diff()
        spread = (square - total**2 / count.clamp(min=1)).clamp(min=0) * count / (count - 1).clamp(min=1)
        return BoundCurve(torch.tensor(edges), total / weight / widths, spread.sqrt() / weight / widths, error / count)


@torch.no_grad()
def evaluate_bound(
    terms: BoundTerms,
    estimator: BoundEstimator,
    images: ImageSet,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> BoundMeter:
    """The bound of a whole set of images on one device, at most batch_size evaluations at once.

    progress: number of evaluations -> context manager that yields advance(number of further ones).
    """
    plan = estimator.plan(terms, images)
    meter = BoundMeter(plan, terms.timesteps)
    with nullcontext() if progress is None else progress(plan.evaluations - plan.pilot_evaluations) as advance:
        for index in torch.split(torch.arange(images.size), 8 * batch_size):  # of many images few may have a draw each
            x, label = images.fetch(index)
            meter.update(evaluate_draws(terms, plan, images, index, x, label, batch_size, advance))
    return meter


class _Error(NamedTuple):
    """A standard error, and on how many degrees of freedom it is known."""

    stderr: float
    freedom: int

    @property
    def half_width(self) -> float:
        """Of the 95% interval, by Student's t."""
        return float(stdtrit(self.freedom, 0.975)) * self.stderr

    def together(self, other: _Error) -> _Error:
        """Of the sum of two independent errors, of Welch and Satterthwaite's freedom; one alone if the other is nan."""
        known = [error for error in (self, other) if error.stderr == error.stderr]
        if not known:
            return _Error(math.nan, 1)
        variance = sum(error.stderr**2 for error in known)
        parts = sum(error.stderr**4 / error.freedom for error in known)
        return _Error(math.sqrt(variance), int(variance**2 / parts) if parts else known[0].freedom)


def _variance_of_mean(replicates: Tensor) -> Tensor:
    """The variance of the mean over replicates, (B, R) -> (B,); nan for one replicate."""
    if replicates.shape[1] == 1:
        return torch.full_like(replicates[:, 0], math.nan)
    return replicates.var(1) / replicates.shape[1]
