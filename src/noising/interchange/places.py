"""The layers of a U-Net in the order in which an image passes them, with the level and the number of each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from noising.models.blocks import Stage
from noising.models.u_shape import UShape


class Place(NamedTuple):
    """A layer on the way down, in the middle or on the way up.

    path: its name in the network; level: 0 at the image's resolution; block: its number within the level; None for
    a layer that halves or doubles, whose level is the one that it leads to.
    """

    path: str
    module: Any
    level: int
    block: int | None


def down(network: UShape) -> Iterator[Place]:
    """The layers on the way down, but for the first convolution."""
    level, block = 0, 0
    for number, module in enumerate(network.down):
        if resamples(module):
            level, block = level + 1, 0
            yield Place(f"down.{number}", module, level, None)
        else:
            yield Place(f"down.{number}", module, level, block)
            block += 1


def up(network: UShape) -> Iterator[Place]:
    """The layers on the way up, but for the last normalization and convolution."""
    level, block = levels(network) - 1, 0
    for number, module in enumerate(network.up):
        if resamples(module):
            level, block = level - 1, 0
            yield Place(f"up.{number}", module, level, None)
        else:
            yield Place(f"up.{number}", module, level, block)
            block += 1


def levels(network: UShape) -> int:
    """The number of levels."""
    return 1 + sum(resamples(module) for module in network.down)


def resamples(module: nn.Module) -> bool:
    """Whether a layer of the way down or up halves or doubles."""
    return not isinstance(module, Stage) or module.residual.resample is not None
