"""The common part of the layouts of U-Nets: names of the layers of a residual block and of self-attention."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from noising.errors import require
from noising.interchange.layout import Layout
from noising.interchange.tensor_maps import SAME, Entry, Storage, layer
from noising.models.blocks import Attention, Residual, Stage

PLAIN: dict[str, Any] = {"scale_shift": True, "corner_padding": False, "endpoint": False, "norm_eps": 1e-5}
"""Options that a layout has no place for, but for these values."""


class BlockNames(NamedTuple):
    """A layout's names of the layers of a residual block."""

    norm_in: str
    conv_in: str
    scale_shift: str
    norm_out: str
    conv_out: str
    shortcut: str


class AttentionNames(NamedTuple):
    """A layout's names of the layers of self-attention; query_key_value: one name, or three."""

    norm: str
    query_key_value: tuple[str, ...]
    out: str


class UShapeLayout(Layout):
    """The names and the storage of one project's weights, for one of the U-Nets here."""

    block: BlockNames
    attention: AttentionNames

    def rows(self, attention: Attention) -> Storage:
        """The storage of the matrix of query, key and value."""
        return SAME

    def pointwise(self) -> Storage:
        """The storage of the matrix behind the attention."""
        return SAME

    def layer(self, ours: str, module: nn.Module, theirs: str) -> Iterable[Entry]:
        """The entries of a layer of a residual block."""
        return layer(ours, module, theirs)

    def stage(self, ours: str, stage: nn.Module, theirs: str, attention: str) -> Iterator[Entry]:
        """The entries of a residual block, there at `theirs`, and of its attention, there at `attention`."""
        assert isinstance(stage, Stage)
        assert isinstance(stage.residual, Residual)
        yield from self.residual(f"{ours}.residual", stage.residual, theirs)
        if isinstance(stage.attention, Attention):
            yield from self.attends(f"{ours}.attention", stage.attention, attention)

    def residual(self, ours: str, block: Residual, theirs: str) -> Iterator[Entry]:
        """The entries of a residual block."""
        for own, name in self.block._asdict().items():
            yield from self.layer(f"{ours}.{own}", getattr(block, own), f"{theirs}{name}")

    def attends(self, ours: str, attention: Attention, theirs: str) -> Iterator[Entry]:
        """The entries of self-attention."""
        names = self.attention
        yield from layer(f"{ours}.norm", attention.norm, f"{theirs}{names.norm}")
        for part in ("weight", "bias"):
            there = tuple(f"{theirs}{name}.{part}" for name in names.query_key_value)
            yield Entry(f"{ours}.query_key_value.{part}", there, self.rows(attention))
        yield from layer(f"{ours}.out", attention.out, f"{theirs}{names.out}", self.pointwise())


def require_plain(options: Mapping[str, Any], *names: str) -> None:
    """Refuse a network with an option that a layout has no place for: ValueError."""
    for name in names:
        value = options.get(name, PLAIN[name])
        require(value == PLAIN[name], f"the layout has no place for model.{name}={value}")
