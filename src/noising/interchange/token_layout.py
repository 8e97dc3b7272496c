"""The common part of the layouts of transformers over patches: names within a block, sizes read from shapes."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from noising.errors import require
from noising.interchange.layout import Layout
from noising.interchange.tensor_maps import SAME, BatchAxis, Entry, Storage, SwappedHalves, layer

PUBLISHED_HEADS = {384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16}
"""Token width -> attention heads, of DiT-S, B, L and XL, and of U-ViT-S, M, L and H."""


class TokenBlockNames(NamedTuple):
    """A layout's names of the layers of a block, by default DiT's; query_key_value: one name, or three."""

    query_key_value: tuple[str, ...] = ("attn.qkv",)
    attention_out: str = "attn.proj"
    layer_in: str = "mlp.fc1"
    layer_out: str = "mlp.fc2"
    modulation: str = "adaLN_modulation.1"

    @property
    def layers(self) -> dict[str, str]:
        """Places within a block here, of which it need not have all, and their names."""
        return {
            "attention_norm": "norm1",
            "feed_forward_norm": "norm2",
            "attention.query_norm": "attn.q_norm",
            "attention.key_norm": "attn.k_norm",
            "attention.out": self.attention_out,
            "feed_forward.layer_in": self.layer_in,
            "feed_forward.layer_out": self.layer_out,
            "modulation": self.modulation,
        }


class TokenLayout(Layout):
    """The names and the storage of one project's weights, for one of the transformers here."""

    of_block = TokenBlockNames()
    rows: Storage = SAME
    """The storage of the matrix of query, key and value."""

    def block(self, ours: str, block: nn.Module, theirs: str) -> Iterator[Entry]:
        """The entries of the normalizations, the attention, the feed-forward part and the modulation of a block."""
        parts = dict(block.named_modules())
        for name, _ in parts["attention.query_key_value"].named_parameters():
            there = tuple(f"{theirs}.{part}.{name}" for part in self.of_block.query_key_value)
            yield Entry(f"{ours}.attention.query_key_value.{name}", there, self.rows)
        for place, name in self.of_block.layers.items():
            if place in parts:
                yield from layer(f"{ours}.{place}", parts[place], f"{theirs}.{name}")

    def embedders(self, network: Any, prefix: str = "") -> Iterator[Entry]:
        """The entries of the positions, the noise label and the class, under the names of DiT's code."""
        first, last = network.noise_embedding.layers[0], network.noise_embedding.layers[2]
        yield Entry("positions", (f"{prefix}pos_embed",), BatchAxis())
        yield from layer("noise_embedding.layers.0", first, f"{prefix}t_embedder.mlp.0", SwappedHalves())
        yield from layer("noise_embedding.layers.2", last, f"{prefix}t_embedder.mlp.2")
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, f"{prefix}y_embedder.embedding_table")


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
