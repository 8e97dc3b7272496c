"""Estimators of the bound: at which steps the network is evaluated, for which images, and with what weight.

An estimator plans draws (image, replicate, step, weight) for a set of images before any is evaluated. In each replicate
the sum of weight · L_t over the draws, divided by the number of images, is an unbiased estimate of the set's bound
without L_T, which is exact. The spread of the replicates gives the standard error of their mean.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noising.diffusion.likelihood.controls import Controls
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.pilot import ImageSpread, VarianceEstimate
from noising.diffusion.likelihood.terms import BoundTerms
from noising.errors import require
from noising.randomness import Streams


class DrawIndex(NamedTuple):
    """E draws of B images, (E,) each: index among the B, index of the replicate, step t, and float64 weight of L_t."""

    row: Tensor
    replicate: Tensor
    step: Tensor
    weight: Tensor


class BoundDraws(NamedTuple):
    """The evaluated draws of B images of D = dims numbers each: float64 on the host, in nats.

    prior: L_T, exact, floor: least possible L_0, and taken_off: what control variates take off the sum of the terms,
    (B,); nats: L_t less control variates, and error: ‖x − x̂‖²/D, of each draw (E,).
    """

    prior: Tensor
    floor: Tensor
    taken_off: Tensor
    places: DrawIndex
    nats: Tensor
    error: Tensor
    dims: int


class BoundPlan(ABC):
    """The draws of a set of images, fixed before the first is evaluated.

    evaluations: the network's over all images, those of a pilot included; image_spread, (bits/dim)²: as estimated by
    a pilot.
    """

    replicates: int
    evaluations: int
    pilot_evaluations: int = 0
    by_image: bool  # whether each image has draws of its own in every replicate, independent of the other images'
    even: bool  # whether all images have equally many draws in every replicate, so that images can be compared by them
    image_spread: ImageSpread | None = None
    strata: Tensor | None = None
    """Edges (K + 1,) of strata with one random step each an image and replicate; None if steps are evenly spaced."""
    limited: bool = False
    """Whether the error that was asked for would cost more evaluations than all terms of all images."""
    controls: Controls | None = None
    """Control variates that are taken off the terms."""
    noise: tuple[VarianceEstimate, VarianceEstimate, VarianceEstimate] | None = None
    """Variances of the mean of the steps, the decoder and both, (bits/dim)², where the draws themselves tell none."""

    @abstractmethod
    def places(self, index: Tensor, streams: Streams) -> DrawIndex:
        """The draws of the images of these global indices (B,); streams: the images', for draws not fixed yet."""


class BoundEstimator(ABC):
    """A rule that plans the draws. Its options are attributes too: the card of a bound lists them by name."""

    def __init__(self, clip: float | None = 1.0) -> None:
        """clip: x̂ is clamped to [−clip, clip], which changes the model that is bounded."""
        require(clip is None or clip > 0, f"clip must be positive or null, got {clip}")
        self.clip = clip

    def most_evaluations(self, timesteps: int) -> int:
        """The most network evaluations an image that a plan takes, of a chain of T steps; by default all T."""
        return timesteps

    @abstractmethod
    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> BoundPlan:
        """The plan for these images; terms are evaluated by a pilot only.

        share: broadcasts a value from rank 0, so that all ranks have the same plan.
        """


def evaluate_draws(
    terms: BoundTerms,
    plan: BoundPlan,
    images: ImageSet,
    index: Tensor,
    x: Tensor,
    class_label: Tensor | None = None,
    at_once: int = 64,
    advance: Callable[[int], None] | None = None,
) -> BoundDraws:
    """Evaluate the planned draws of images x (B, C, H, W) with the set's indices (B,), at_once in a batch.

    advance: called with the number of draws after each batch.
    """
    streams = Streams(images.seed, f"bound/{images.purpose}", index.tolist(), x.device)
    floor = terms.floor(x, streams.normal(x.shape[1:]).to(x))
    places = plan.places(index, streams)
    controls, dims = plan.controls, x[0].numel()
    parts = [torch.zeros(2 if controls is None else 3, 0, dtype=torch.float64, device=x.device)]
    for rows, steps in zip(torch.split(places.row, at_once), torch.split(places.step, at_once), strict=True):
        if not len(rows):
            continue  # few draws over many images: these got none
        noise = streams.normal(x.shape[1:], rows).to(x)
        here = rows.to(x.device, non_blocking=True)
        classes = None if class_label is None else class_label[here]
        values = [*terms.at(x[here], steps, noise, classes)]
        if controls is not None:
            values.append(controls.variates.of_noise(x[here], terms.level(steps), noise))
        parts.append(torch.stack(values).double())
        if advance is not None:
            advance(len(rows))
    prior, floor = terms.prior(x).double().cpu(), floor.double().cpu()
    nats, error, *control = torch.cat(parts, 1).cpu()
    if controls is None:
        return BoundDraws(prior, floor, torch.zeros_like(prior), places, nats, error, dims)
    nats = nats - controls(index[places.row], places.step, control[0])
    return BoundDraws(prior, floor, controls.of_bound(index), places, nats, error, dims)


class StrataPlan(BoundPlan):
    """One uniform draw per image, replicate and stratum of steps, weighted by the stratum's number of steps."""

    by_image = even = True
    strata: Tensor

    def __init__(self, edges: Tensor, replicates: int, images: int) -> None:
        """edges: (K + 1,), stratum k holds the steps edges[k] .. edges[k + 1] − 1."""
        self.strata = edges
        self.replicates = replicates
        self.evaluations = images * replicates * (len(edges) - 1)

    def places(self, index: Tensor, streams: Streams) -> DrawIndex:
        widths = self.strata.diff()
        shape = (len(index), self.replicates, len(widths))
        drawn = self.strata[:-1] + (streams.uniform(shape[1:]).cpu().double() * widths).long()
        rows = torch.arange(shape[0])[:, None, None].expand(shape)
        replicate = torch.arange(shape[1])[:, None].expand(shape)
        fields = (rows, replicate, drawn, widths.double().expand(shape))
        return DrawIndex(*(field.flatten() for field in fields))


class Exact(BoundEstimator):
    """Every step of every image once: T evaluations per image. One draw each gives no Monte Carlo error."""

    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> StrataPlan:
        return StrataPlan(torch.arange(1, terms.timesteps + 2), 1, images.size)


class Stratified(BoundEstimator):
    """A fixed number of draws per image, in strata of equal width in log t, since the terms fall about as 1/t.

    Half of the draws are one replicate, half the other, each with the decoder's term and one draw per stratum.
    """

    def __init__(self, times: int = 64, clip: float | None = 1.0) -> None:
        super().__init__(clip)
        require(times >= 4 and times % 2 == 0, f"times must be an even number from 4, got {times}")
        self.times = times

    def most_evaluations(self, timesteps: int) -> int:
        return min(self.times, 2 * timesteps)

    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> StrataPlan:
        return StrataPlan(log_strata(terms.timesteps, self.times // 2), 2, images.size)


def log_strata(timesteps: int, count: int) -> Tensor:
    """Edges (K + 1,), as in `StrataPlan`, of at most `count` strata of the steps 1..T: step 1, then even in log t."""
    edges = [1, 2]
    for left in range(min(count, timesteps) - 1, 0, -1):  # divide the remaining steps by equal ratios
        ratio = ((timesteps + 1) / edges[-1]) ** (1 / left)  # never wider than equal parts: a step is left to each
        edges.append(max(edges[-1] + 1, round(edges[-1] * ratio)))
    return torch.tensor([*edges[:-1], timesteps + 1])
