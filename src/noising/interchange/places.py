"""The layers of a U-Net in the order in which an image passes them, with the level and the number of each."""

from collections.abc import Iterator, Mapping
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
    return not isinstance(module, Stage) or getattr(module.residual, "resample", None) is not None


def at(resolution: int, level: int) -> str:
    """A level in the names of EDM and EDM2: its resolution."""
    side = resolution >> level
    return f"{side}x{side}"


def named_by_resolution(network: UShape, resolution: int) -> Iterator[tuple[str, str, Any]]:
    """The path of each layer here, its name in EDM and EDM2, and the layer; but for the ends of the network."""
    for path, module, level, block in down(network):
        yield path, f"enc.{at(resolution, level)}_{'down' if block is None else f'block{block}'}", module
    for number, module in enumerate(network.middle):
        yield f"middle.{number}", f"dec.{at(resolution, levels(network) - 1)}_in{number}", module
    for path, module, level, block in up(network):
        yield path, f"dec.{at(resolution, level)}_{'up' if block is None else f'block{block}'}", module


def levels_named(shapes: Mapping[str, Any], resolution: int, part: str) -> dict[int, str]:
    """The names of EDM and EDM2 up to the number of a block on the way down, by the resolution of its level.

    part: of a block's names, one that every level has.
    """
    sides = [resolution >> level for level in range(resolution.bit_length())]
    return {side: f"enc.{side}x{side}_block" for side in sides if f"enc.{side}x{side}_block0.{part}" in shapes}


def first_convolution(shapes: Mapping[str, Any]) -> tuple[str, int]:
    """The name of the weight of the first convolution in EDM and EDM2, and the resolution that stands in it."""
    first = next(name for name in shapes if name.startswith("enc.") and name.endswith("_conv.weight"))
    return first, int(first.removeprefix("enc.").split("x")[0])
