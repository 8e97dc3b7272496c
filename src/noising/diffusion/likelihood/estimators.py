"""The bound at a price: at which steps the network is evaluated, for which images, and with what weight.

An estimator makes a plan for a set of images: a list of draws (image, replicate, step, weight), made before any of them
is evaluated. In each replicate the sum of weight · L_t over the draws, divided by the number of images, is an unbiased
estimate of the set's bound (without L_T, which is exact); how far replicates lie apart says how sure their mean is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noising.diffusion.likelihood.terms import BoundTerms
from noising.randomness import Streams

__all__ = [
    "BoundDraws",
    "BoundEstimator",
    "BoundPlan",
    "DrawIndex",
    "Exact",
    "ImageSet",
    "ImageSpread",
    "StrataPlan",
    "Stratified",
    "evaluate_draws",
    "log_strata",
]


class ImageSet(NamedTuple):
    """A set of images, by their indices 0..size − 1."""

    size: int
    fetch: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    """Indices (B,) -> images (B, C, H, W) on the network's device, and their class labels if the network wants them."""
    purpose: str
    """Part of the key of every draw: the name of the split."""
    seed: int = 0


class DrawIndex(NamedTuple):
    """Where the draws of some images lie, each (E,), on the host."""

    row: Tensor
    """Which of the images."""
    replicate: Tensor
    step: Tensor
    """1..T."""
    weight: Tensor
    """float64."""


class BoundDraws(NamedTuple):
    """What was evaluated for B images: E evaluations of the network. float64 on the host; nats."""

    prior: Tensor
    """L_T, exact, (B,)."""
    floor: Tensor
    """The least L_0 possible, (B,)."""
    places: DrawIndex
    nats: Tensor
    """L_t at each place, (E,)."""
    error: Tensor
    """‖x − x̂‖²/D at each place, (E,)."""
    dims: int


class ImageSpread(NamedTuple):
    """How far the bounds of images lie apart, (bits/dim)²."""

    variance: float
    """Of their bounds, the noise of estimating each taken off."""
    raw: float
    """With that noise."""
    freedom: int

    @property
    def uncertainty(self) -> float:
        """The variance of `variance`, but for a factor of 2."""
        return self.raw**2 / self.freedom


class BoundPlan(ABC):
    """The draws of a whole set of images, known before the first is made."""

    replicates: int
    evaluations: int
    """Of the network, over all images; what planning cost is included."""
    pilot_evaluations: int = 0
    """Those that planning cost."""
    by_image: bool
    """Whether each image has draws in every replicate, independent of the other images'."""
    even: bool
    """Whether each image has as many draws as any other in every replicate, so that the draws tell images apart."""
    image_spread: ImageSpread | None = None
    """How far images lie apart, if planning told."""

    @abstractmethod
    def places(self, index: Tensor, streams: Streams) -> DrawIndex:
        """The draws of the images of these global indices (B,); streams: theirs, for what is not planned yet."""


class BoundEstimator(ABC):
    """Makes the plan."""

    def __init__(self, clip: float | None) -> None:
        """clip: x̂ is kept in [−clip, clip], which changes the model that is bounded; recorded beside the number."""
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be positive or null, got {clip}")
        self.clip = clip

    @abstractmethod
    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> BoundPlan:
        """The plan for these images; only a pilot evaluates any of the terms.

        share: gives every rank what the first one has, so that all have one plan.
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
    """Make the planned draws of the images x (B, C, H, W) of the set's indices (B,), so many of them at once.

    advance: told how many more were made.
    """
    streams = Streams(images.seed, f"bound/{images.purpose}", index.tolist(), x.device)
    floor = terms.floor(x, streams.normal(x.shape[1:]).to(x))
    places = plan.places(index, streams)
    parts = [torch.zeros(2, 0, dtype=torch.float64, device=x.device)]
    for rows, steps in zip(torch.split(places.row, at_once), torch.split(places.step, at_once), strict=True):
        noise = streams.normal(x.shape[1:], rows.tolist()).to(x)
        here = rows.to(x.device, non_blocking=True)
        classes = None if class_label is None else class_label[here]
        parts.append(torch.stack(terms.at(x[here], steps, noise, classes)).double())
        if advance is not None:
            advance(len(rows))
    nats, error = torch.cat(parts, 1).cpu()
    return BoundDraws(terms.prior(x).double().cpu(), floor.double().cpu(), places, nats, error, x[0].numel())


class StrataPlan(BoundPlan):
    """From each stratum of steps each image draws one, uniformly, and counts it as often as the stratum has steps."""

    by_image = even = True

    def __init__(self, edges: Tensor, replicates: int, images: int) -> None:
        """edges: (K + 1,), stratum k holds the steps edges[k] .. edges[k + 1] − 1."""
        self.edges = edges
        self.replicates = replicates
        self.evaluations = images * replicates * (len(edges) - 1)

    def places(self, index: Tensor, streams: Streams) -> DrawIndex:
        widths = self.edges.diff()
        shape = (len(index), self.replicates, len(widths))
        drawn = self.edges[:-1] + (torch.from_numpy(streams.uniform(shape[1:])) * widths).long()
        rows = torch.arange(shape[0])[:, None, None].expand(shape)
        replicate = torch.arange(shape[1])[:, None].expand(shape)
        weight = widths.double().expand(shape)
        return DrawIndex(rows.flatten(), replicate.flatten(), drawn.flatten(), weight.flatten())


class Exact(BoundEstimator):
    """Every step of every image, once: T evaluations an image. No Monte Carlo error can be told from one draw each."""

    def __init__(self, clip: float | None = 1.0) -> None:
        super().__init__(clip)

    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> StrataPlan:
        return StrataPlan(torch.arange(1, terms.timesteps + 2), 1, images.size)


class Stratified(BoundEstimator):
    """A fixed number of times an image, in strata of equal log t: the terms fall about as 1/t.

    Half of the times are one replicate, half the other, each with the decoder's term and one time a stratum.
    """

    def __init__(self, times: int = 64, clip: float | None = 1.0) -> None:
        super().__init__(clip)
        if times < 4 or times % 2:
            raise ValueError(f"times must be an even number from 4, got {times}")
        self.times = times

    def plan(self, terms: BoundTerms, images: ImageSet, share: Callable[[Any], Any] | None = None) -> StrataPlan:
        return StrataPlan(log_strata(terms.timesteps, self.times // 2), 2, images.size)


def log_strata(timesteps: int, count: int) -> Tensor:
    """Edges (K + 1,) of the steps 1..T in at most `count` strata: step 1, the decoder's, then of equal log t."""
    edges = [1, 2]
    for left in range(min(count, timesteps) - 1, 0, -1):  # the steps that are left, in strata of equal ratio
        ratio = ((timesteps + 1) / edges[-1]) ** (1 / left)
        room = timesteps + 2 - left  # each stratum after this one has a step at least
        edges.append(min(room, max(edges[-1] + 1, round(edges[-1] * ratio))))
    return torch.tensor([*edges[:-1], timesteps + 1])
