"""What the layouts of transformers over patches share: the names within a block, and sizes read from shapes."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from noising.errors import require
from noising.interchange.layout import Layout
from noising.interchange.tensor_maps import Entry, layer
from noising.models.tokens import TokenAttention


class TokenLayout(Layout):
    """The names and the storage of one project's weights, for one of the transformers here."""

    feed_forward: tuple[str, str]
    """Names of the two layers of a feed-forward part."""

    def block(self, ours: str, block: Any, theirs: str) -> Iterator[Entry]:
        """The entries of the two normalizations, the attention and the feed-forward part of a block."""
        for own, name in (("attention_norm", "norm1"), ("feed_forward_norm", "norm2")):
            yield from layer(f"{ours}.{own}", getattr(block, own), f"{theirs}.{name}")
        attention: TokenAttention = block.attention
        names = {"query_key_value": "qkv", "query_norm": "q_norm", "key_norm": "k_norm", "out": "proj"}
        for own, name in names.items():
            if (part := getattr(attention, own)) is not None:
                yield from layer(f"{ours}.attention.{own}", part, f"{theirs}.attn.{name}")
        for own, name in zip(("layer_in", "layer_out"), self.feed_forward, strict=True):
            yield from layer(f"{ours}.feed_forward.{own}", getattr(block.feed_forward, own), f"{theirs}.mlp.{name}")


def side_of(patches: int) -> int:
    """The patches along a side of a square image of that many. Raises ValueError if it is no square."""
    side = math.isqrt(patches)
    require(side**2 == patches, f"pos_embed is of {patches} patches, which are no square image")
    return side


def usual_heads(width: int) -> int:
    """The attention heads of the published networks of a width: 64 numbers wide each, and 16 at most."""
    return max(1, min(16, width // 64))


def require_same_channels(network: nn.Module, channels: int, out_channels: int) -> None:
    """Refuse a network that gives other channels than it takes, for which the layout has no place: ValueError."""
    title = type(network).__name__
    message = f"this layout's {title} gives as many channels as it takes, {channels}, not {out_channels}"
    require(out_channels == channels, message)
