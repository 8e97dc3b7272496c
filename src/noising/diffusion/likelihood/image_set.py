"""A set of images whose bound is estimated."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class ImageSet(NamedTuple):
    """A set of images with indices 0..size − 1.

    fetch: indices (B,) -> images (B, C, H, W) on the network's device, and class labels for a network with classes;
    purpose: name of the split, part of the key of every draw.
    """

    size: int
    fetch: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    purpose: str
    seed: int = 0
