"""The layout of U-ViT. Names: https://github.com/baofff/U-ViT."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from noising.interchange.layout import Described, Shapes, numbered
from noising.interchange.tensor_maps import BatchAxis, Entry, layer
from noising.interchange.token_layout import TokenLayout, heads_of, require_same_channels, side_of
from noising.models.uvit import UViT


class UViTLayout(TokenLayout):
    """Blocks ``in_blocks``, ``mid_block`` and ``out_blocks``; the class's token comes first, then the time's."""

    network: UViT
    families = (UViT,)
    feed_forward = ("fc1", "fc2")

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return "decoder_pred.weight" in shapes

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: heads or head_width; null_class: the classes' last row is "no class". Shapes tell the resolution."""
        width, channels, patch = (shapes["patch_embed.proj.weight"][axis] for axis in (0, 1, 3))
        rows = shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0
        null_class = bool(facts.get("null_class", False))
        options = {
            "channels": channels,
            "out_channels": shapes["decoder_pred.weight"][0] // patch**2,
            "resolution": patch * side_of(shapes["pos_embed"][1] - (2 if rows else 1)),
            "classes": rows - null_class if rows else 0,
            "null_class": null_class,
            "width": width,
            "depth": 2 * numbered(shapes, "in_blocks."),
            "heads": heads_of(width, facts),
            "patch": patch,
            "mlp_ratio": shapes["mid_block.mlp.fc1.weight"][0] / width,
            "qkv_bias": "mid_block.attn.qkv.bias" in shapes,
            "time_layers": "time_embed.0.weight" in shapes,
            "skips": any("skip_linear" in name for name in shapes),
            "last_convolution": "final_layer.weight" in shapes,
        }
        return Described(UViT, options, cls)

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "UViTLayout":
        cls.require_family(network)
        uvit = cast(UViT, network)
        require_same_channels(uvit, uvit.patches.in_channels, uvit.last.out_features // uvit.patch**2)
        return cls(uvit)

    def entries(self) -> Iterator[Entry]:
        network = self.network
        yield Entry("positions", ("pos_embed",), BatchAxis())
        yield from layer("patches", network.patches, "patch_embed.proj")
        for number, part in enumerate(network.time_layers):
            yield from layer(f"time_layers.{number}", part, f"time_embed.{number}")
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, "label_emb")
        for ours, theirs, blocks in (("before", "in_blocks", network.before), ("after", "out_blocks", network.after)):
            block: Any
            for number, block in enumerate(blocks):
                yield from self.block(f"{ours}.{number}", block, f"{theirs}.{number}")
                if block.join is not None:
                    yield from layer(f"{ours}.{number}.join", block.join, f"{theirs}.{number}.skip_linear")
        yield from self.block("middle", network.middle, "mid_block")
        yield from layer("last_norm", network.last_norm, "norm")
        yield from layer("last", network.last, "decoder_pred")
        if network.last_convolution is not None:
            yield from layer("last_convolution", network.last_convolution, "final_layer")
