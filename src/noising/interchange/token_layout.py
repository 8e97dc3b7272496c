"""What the layouts of transformers over patches share: the names within a block, and sizes read from shapes."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from noising.errors import require
from noising.interchange.layout import Layout
from noising.interchange.tensor_maps import Entry, layer
from noising.models.tokens import TokenAttention

PUBLISHED_HEADS = {384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16}
"""Token width -> attention heads, of DiT-S, B, L and XL, and of U-ViT-S, M, L and H."""


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


def heads_of(width: int, facts: Mapping[str, Any]) -> int:
    """The attention heads of tokens of a width: said by the facts, else those of the published networks.

    Raises ValueError for a width that none of them has.
    """
    if "head_width" in facts:
        return width // int(facts["head_width"])
    heads: int = facts.get("heads") or PUBLISHED_HEADS.get(width, 0)
    require(heads > 0, f"its names do not tell the heads of {width} channels: say it by file.heads")
    return heads


def require_same_channels(network: nn.Module, channels: int, out_channels: int) -> None:
    """Refuse a network that gives other channels than it takes, for which the layout has no place: ValueError."""
    title = type(network).__name__
    message = f"this layout's {title} gives as many channels as it takes, {channels}, not {out_channels}"
    require(out_channels == channels, message)
