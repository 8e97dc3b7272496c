"""The training order: the images of step k are a pure function of (seed, k), so that a run resumes exactly.

The permutations of epochs 0, 1, 2, ... are laid end to end, and step k takes images [k·B, (k+1)·B) of that stream: no
image is dropped when B does not divide the set, and all images are used equally often.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from noising.randomness import generator


class BatchSlice(NamedTuple):
    """One rank's micro-batch: images [first, first + len(indices)) of the global batch of a step."""

    step: int
    first: int
    indices: Tensor  # (b,) int64, into the training set


class StepOrder(Sampler[BatchSlice]):
    """An infinite batch sampler that is indexed by the optimizer step.

    ``start_step`` is called whenever the iteration starts, so that a resumed run goes on after its last optimizer step,
    and the sampler has no state to save. Micro-batch m of rank r is the slice [(m·world + r)·b, +b) of the step's
    global batch: ranks and accumulation change where an image is computed, not which images make a step.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        start_step: Callable[[], int] = lambda: 0,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % (world * accumulate):
            raise ValueError(
                f"data.batch_size={batch_size} must be a multiple of {world * accumulate}"
                f" ({world} devices x {accumulate} accumulation steps): change it or them"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.accumulate = accumulate
        self.rank = rank
        self.world = world
        self._permutations: dict[int, Tensor] = {}

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            # A batch reaches over at most two epochs, since batch_size <= images: cache only those.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            drawn = generator(self.seed, "order", epoch).permutation(self.images)
            self._permutations[epoch] = torch.from_numpy(drawn)
        return self._permutations[epoch]

    def global_batch(self, step: int) -> Tensor:
        """Indices (batch_size,) int64 of the images of one optimizer step, over all ranks and micro-batches."""
        parts: list[Tensor] = []
        position, missing = step * self.batch_size, self.batch_size
        while missing:
            epoch, begin = divmod(position, self.images)
            part = self._permutation(epoch)[begin : begin + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return torch.cat(parts)

    def __iter__(self) -> Iterator[BatchSlice]:
        b = self.batch_size // (self.world * self.accumulate)
        for step in itertools.count(self.start_step()):
            batch = self.global_batch(step)
            for micro in range(self.accumulate):
                first = (micro * self.world + self.rank) * b
                yield BatchSlice(step, first, batch[first : first + b])


def evaluation_batches(images: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Batches of the images rank, rank + world, ...: each image is on one rank, and none is padding."""
    indices = torch.arange(images)[rank::world]
    return list(torch.split(indices, max(1, batch_size // world))) if len(indices) else []
