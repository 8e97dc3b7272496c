"""The layout of improved-diffusion, guided-diffusion (ADM) and torchcfm.

Names: https://github.com/openai/improved-diffusion, https://github.com/openai/guided-diffusion.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from torch import nn

from noising.interchange.layout import Described, Shapes, numbered
from noising.interchange.places import down, up
from noising.interchange.tensor_maps import Entry, HeadRows, Pointwise, Storage, SwappedHalves, layer
from noising.interchange.u_shape_layout import AttentionNames, BlockNames, UShapeLayout, require_plain
from noising.models.blocks import Attention, Stage
from noising.models.unet import UNet


class OpenAI(UShapeLayout):
    """Numbered ``input_blocks``, a ``middle_block`` and ``output_blocks``.

    new_attention_order: rows of query, key and value as [q/k/v][head][channel], as of ADM at 64x64; without it as
    [head][q/k/v][channel], as of all other released files.
    """

    network: UNet
    families = (UNet,)
    block = BlockNames(
        ".in_layers.0", ".in_layers.2", ".emb_layers.1", ".out_layers.0", ".out_layers.3", ".skip_connection"
    )
    attention = AttentionNames(".norm", (".qkv",), ".proj_out")

    def __init__(self, network: UNet, new_attention_order: bool = False) -> None:
        super().__init__(network)
        self.new_attention_order = new_attention_order

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return "time_embed.0.weight" in shapes and "input_blocks.0.0.weight" in shapes

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: heads or head_width, groups, new_attention_order."""
        width, outputs = shapes["input_blocks.0.0.weight"][0], numbered(shapes, "output_blocks.")
        doubling = (".1.conv.weight", ".2.conv.weight", ".1.in_layers.0.weight", ".2.in_layers.0.weight")
        levels = 1 + sum(any(f"output_blocks.{n}{end}" in shapes for end in doubling) for n in range(outputs))
        blocks = outputs // levels - 1
        firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
        first = firsts[0] + ".0"
        options = {
            "channels": shapes["input_blocks.0.0.weight"][1],
            "out_channels": shapes["out.2.weight"][0],
            "resolution": resolution,
            "classes": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0,
            "null_class": False,
            "width": width,
            "multipliers": [shapes[f"{place}.0.in_layers.2.weight"][0] // width for place in firsts],
            "blocks": blocks,
            "attention": [resolution >> n for n, place in enumerate(firsts) if f"{place}.1.qkv.weight" in shapes],
            "heads": facts.get("heads", 4),
            "head_width": facts.get("head_width"),
            "groups": facts.get("groups", 32),
            "scale_shift": shapes[f"{first}.emb_layers.1.weight"][0] == 2 * shapes[f"{first}.in_layers.2.weight"][0],
            "residual_resampling": levels > 1 and not any(".op." in name for name in shapes),
        }
        return Described(UNet, options, partial(cls, new_attention_order=facts.get("new_attention_order", False)))

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "OpenAI":
        """facts: new_attention_order."""
        cls.require_family(network)
        require_plain(options, "norm_eps", "endpoint", "corner_padding")
        return cls(cast(UNet, network), facts.get("new_attention_order", False))

    def rows(self, attention: Attention) -> Storage:
        return HeadRows(attention.heads, (0, 1, 2) if self.new_attention_order else (1, 0, 2), axes=3)

    def pointwise(self) -> Storage:
        return Pointwise(3)

    def entries(self) -> Iterator[Entry]:
        network = self.network
        first, last = network.noise_embedding.layers[0], network.noise_embedding.layers[2]
        yield from layer("noise_embedding.layers.0", first, "time_embed.0", SwappedHalves())
        yield from layer("noise_embedding.layers.2", last, "time_embed.2")
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, "label_emb")
        yield from layer("first", network.first, "input_blocks.0.0")
        for number, (path, module, _, _) in enumerate(down(network), 1):
            there = f"input_blocks.{number}"
            if isinstance(module, Stage):
                yield from self.stage(path, module, f"{there}.0", f"{there}.1")
            else:
                yield from layer(path, module, f"{there}.0.op")
        ahead, after = network.middle
        yield from self.stage("middle.0", ahead, "middle_block.0", "middle_block.1")
        yield from self.stage("middle.1", after, "middle_block.2", "")
        number, attended = -1, False
        for path, module, _, block in up(network):
            if block is not None:
                number, attended = number + 1, module.attention is not None
                yield from self.stage(path, module, f"output_blocks.{number}.0", f"output_blocks.{number}.1")
                continue
            there = f"output_blocks.{number}.{2 if attended else 1}"
            if isinstance(module, Stage):
                yield from self.stage(path, module, there, "")
            else:
                yield from layer(f"{path}.1", module[1], f"{there}.conv")
        yield from layer("last_norm", network.last_norm, "out.0")
        yield from layer("last", network.last, "out.2")
