"""Maps between the tensors of two state dicts of one network: which is which, and how each is stored on either side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Storage:
    """A way in which numbers are stored on the other side: as they are here, if no subclass says otherwise."""

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        """The tensor here, but for axes of length one."""
        return theirs[0]

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        """The tensors there."""
        return [ours]


SAME = Storage()


class SwappedHalves(Storage):
    """The first and the second half of the columns change places: cosines before sines, or sines before cosines."""

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.cat(theirs[0].chunk(2, dim=1)[::-1], dim=1)

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        return [self.read([ours])]


class Transposed(Storage):
    """A matrix stored as (inputs, outputs)."""

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        return theirs[0].T

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        return [ours.flatten(1).T]


class HeightWidthInOut(Storage):
    """A convolution's kernel stored as (height, width, inputs, outputs)."""

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        return theirs[0].permute(3, 2, 0, 1)

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        return [ours.permute(2, 3, 1, 0)]


class BatchAxis(Storage):
    """A table for all images, stored with an axis of length one for them before the others."""

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        return [ours[None]]


@dataclass(frozen=True)
class Repeated(Storage):
    """One tensor here, of which each of several parts has a copy there."""

    copies: int
    storage: Storage = SAME

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        first, *others = theirs
        if not all(torch.equal(first, other) for other in others):
            raise ValueError(f"its {self.copies} copies of a tensor of shape {tuple(first.shape)} differ")
        return self.storage.read([first])

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        return [*self.storage.write(ours)] * self.copies


@dataclass(frozen=True)
class Scaled(Storage):
    """There it is this factor times as large as here."""

    factor: float

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        return theirs[0] / self.factor

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        return [ours * self.factor]


@dataclass(frozen=True)
class Pointwise(Storage):
    """A convolution by one pixel, stored with this number of axes: 2 as a matrix, 3 as a convolution along a line."""

    axes: int

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        return [_with_axes(ours, self.axes)]


@dataclass(frozen=True)
class HeadRows(Storage):
    """Rows of query, key and value in another order than here, where it is [q/k/v][head][channel].

    order: the place there of each of these three axes: (1, 0, 2) is [head][q/k/v][channel]; axes: their number there.
    """

    heads: int
    order: tuple[int, int, int]
    axes: int = 4

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        rows = theirs[0]
        there = [0, 0, 0]
        for place, size in zip(self.order, (3, self.heads, len(rows) // (3 * self.heads)), strict=True):
            there[place] = size
        return rows.reshape(*there, -1).permute(*self.order, 3).reshape(rows.shape)

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        back = [self.order.index(axis) for axis in range(3)]
        rows = ours.reshape(3, self.heads, len(ours) // (3 * self.heads), -1).permute(*back, 3).reshape(ours.shape)
        return [_with_axes(rows, self.axes)]


@dataclass(frozen=True)
class Separate(Storage):
    """Query, key and value as three matrices; transposed: each as (inputs, outputs)."""

    transposed: bool = False

    def read(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.T if self.transposed and part.ndim > 1 else part for part in theirs])

    def write(self, ours: Tensor) -> Sequence[Tensor]:
        parts = (_with_axes(ours, 2)).chunk(3)
        return [part.T if self.transposed and part.ndim > 1 else part for part in parts]


def _with_axes(tensor: Tensor, axes: int) -> Tensor:
    """The tensor with that many axes, of which those behind the second have length one; a bias as it is."""
    return tensor if tensor.ndim == 1 else tensor.flatten(1)[(..., *[None] * (axes - 2))]


class Entry(NamedTuple):
    """One tensor here, and the one or more there that hold the same numbers."""

    ours: str
    theirs: tuple[str, ...]
    storage: Storage = SAME


def layer(ours: str, module: nn.Module, theirs: str, weight: Storage = SAME, bias: Storage = SAME) -> list[Entry]:
    """The entries of a layer's own parameters, ``weight`` and ``bias`` on both sides."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    return [Entry(f"{ours}.{n}", (f"{theirs}.{n}",), weight if n == "weight" else bias) for n in names]


def read(entries: Iterable[Entry], theirs: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The state dict here of one there, float32; shapes: those of the tensors here."""
    return {
        ours: storage.read([theirs[name].float() for name in names]).reshape(shapes[ours]).clone()
        for ours, names, storage in entries
    }


def write(entries: Iterable[Entry], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict there of one here."""
    return {
        name: tensor.contiguous().clone()
        for key, names, storage in entries
        for name, tensor in zip(names, storage.write(ours[key]), strict=True)
    }
