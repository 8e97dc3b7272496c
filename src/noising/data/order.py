"""The training order: the images of step k are a pure function of (seed, k), so that a run resumes exactly.

The permutations of epochs 0, 1, 2, ... are laid end to end, and step k takes images [k·B, (k+1)·B) of that stream: no
image is dropped when B does not divide the set, and all images are used equally often.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from noising.randomness import generator


class BatchSlice(NamedTuple):
    """One rank's micro-batch: images [first, first + len(indices)) of the global batch of a step."""

    step: int
    first: int
    indices: Tensor  # (b,) int64, into the training set


@dataclass(eq=False)
class StepOrder(IterableDataset[BatchSlice]):
    """The endless slices of one rank, from the optimizer step that ``start_step`` gives.

    It is called whenever the iteration starts, so that a resumed run goes on after its last optimizer step, and the
    order has no state to save. Micro-batch m of rank r is the slice [(m·world + r)·b, +b) of the step's
    global batch: ranks and accumulation change where an image is computed, not which images make a step.
    """

    images: int  # at least batch_size: a step takes images of two epochs at most
    batch_size: int
    seed: int
    start_step: Callable[[], int] = lambda: 0
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    batches: int | None = None  # the images of step k are those of step k mod batches; None for all images

    def __post_init__(self) -> None:
        shares = self.world * self.accumulate
        if self.batch_size % shares:
            raise ValueError(
                f"data.batch_size={self.batch_size} must be a multiple of {shares}"
                f" ({self.world} devices x {self.accumulate} accumulation steps): change one of them"
            )

    def __iter__(self) -> Iterator[BatchSlice]:
        b = self.batch_size // (self.world * self.accumulate)
        for step in itertools.count(self.start_step()):
            place = step if self.batches is None else step % self.batches
            epoch, begin = divmod(place * self.batch_size, self.images)
            batch = _permutation(self.seed, epoch, self.images)[begin : begin + self.batch_size]
            if missing := self.batch_size - len(batch):
                batch = torch.cat([batch, _permutation(self.seed, epoch + 1, self.images)[:missing]])
            for micro in range(self.accumulate):
                first = (micro * self.world + self.rank) * b
                yield BatchSlice(step, first, batch[first : first + b])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, images: int) -> Tensor:
    return torch.from_numpy(generator(seed, "order", epoch).permutation(images))


def evaluation_batches(images: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Batches of the images rank, rank + world, ...: each image is on one rank, and none is padding."""
    indices = torch.arange(images)[rank::world]
    return list(torch.split(indices, max(1, batch_size // world))) if len(indices) else []
