"""The layout of EDM2: its magnitude-preserving U-Net, with the estimate of the uncertainty where the file has it.

Names: https://github.com/NVlabs/edm2. The files that circulate are pickles, which run code when they are opened: their
state dict is exported first.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from torch import nn

from noising.interchange.layout import Described, Layout, Shapes, numbered
from noising.interchange.places import at, first_convolution, levels_named, named_by_resolution
from noising.interchange.tensor_maps import Entry, HeadRows, layer
from noising.models.edm2 import EDM2UNet, RandomCosines, UnitResidual

KNOWN_BY = "emb_fourier.freqs"
"""A tensor that every network of the layout has."""


class EDM2(Layout):
    """Layers named by resolution, ``unet.enc.64x64_block0``; prefix: before the names of the U-Net itself."""

    network: EDM2UNet
    families = (EDM2UNet,)

    def __init__(self, network: EDM2UNet, resolution: int, prefix: str = "unet.") -> None:
        super().__init__(network)
        self.resolution, self.prefix = resolution, prefix

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "EDM2":
        cls.require_family(network)
        return cls(cast(EDM2UNet, network), resolution)

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return any(name.endswith(KNOWN_BY) for name in shapes)

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: head_width, clip_features. The names tell the resolution."""
        prefix = next(name for name in shapes if name.endswith(KNOWN_BY)).removesuffix(KNOWN_BY)
        names = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        first, resolution = first_convolution(names)
        levels = levels_named(names, resolution, "conv_res0.weight")
        widths = [names[f"{place}0.conv_res1.weight"][0] for place in levels.values()]
        width = math.gcd(*widths)
        embedding, waves = names["emb_noise.weight"]
        uncertainty = shapes.get(f"{_outside(prefix)}logvar_linear.weight")
        options: dict[str, Any] = {
            "channels": names[first][1] - 1,
            "out_channels": names["out_conv.weight"][0],
            "resolution": resolution,
            "classes": names["emb_label.weight"][1] if "emb_label.weight" in names else 0,
            "width": width,
            "multipliers": [channels // width for channels in widths],
            "blocks": numbered(names, levels[resolution]),
            "attention": [side for side, place in levels.items() if f"{place}0.attn_qkv.weight" in names],
            "head_width": facts.get("head_width") or 64,
            "noise_waves": None if waves == widths[0] else waves,
            "embedding": None if embedding == max(widths) else embedding,
            "clip_features": facts.get("clip_features") or 256.0,
            "log_variance_waves": uncertainty[1] if uncertainty is not None else 0,
        }
        return Described(EDM2UNet, options, partial(cls, resolution=resolution, prefix=prefix))

    def entries(self) -> Iterator[Entry]:
        network, prefix = self.network, self.prefix
        yield from _cosines("noise_features", network.noise_features, f"{prefix}emb_fourier")
        yield from layer("noise_embedding", network.noise_embedding, f"{prefix}emb_noise")
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, f"{prefix}emb_label")
        yield from layer("first", network.first, f"{prefix}enc.{at(self.resolution, 0)}_conv")
        for path, name, module in named_by_resolution(network, self.resolution):
            yield from _residual(f"{path}.residual", module.residual, prefix + name)
            if module.attention is not None:
                attention, ours, theirs = module.attention, f"{path}.attention", prefix + name
                rows = HeadRows(attention.heads, (2, 0, 1))
                yield from layer(f"{ours}.query_key_value", attention.query_key_value, f"{theirs}.attn_qkv", rows)
                yield from layer(f"{ours}.out", attention.out, f"{theirs}.attn_proj")
        yield from layer("last", network.last, f"{prefix}out_conv")
        yield Entry("last_gain", (f"{prefix}out_gain",))
        if network.log_variance is not None:
            outside = _outside(prefix)
            yield from _cosines("log_variance.features", network.log_variance.features, f"{outside}logvar_fourier")
            yield from layer("log_variance.linear", network.log_variance.linear, f"{outside}logvar_linear")


def _outside(prefix: str) -> str:
    """The beginning of the names of the uncertainty, which is beside the U-Net."""
    return prefix.removesuffix("unet.")


def _cosines(ours: str, cosines: RandomCosines, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}.frequencies", (f"{theirs}.freqs",))
    yield Entry(f"{ours}.phases", (f"{theirs}.phases",))


def _residual(ours: str, block: UnitResidual, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}.scale_gain", (f"{theirs}.emb_gain",))
    names = {"conv_in": "conv_res0", "scale": "emb_linear", "conv_out": "conv_res1", "shortcut": "conv_skip"}
    for own, name in names.items():
        yield from layer(f"{ours}.{own}", getattr(block, own), f"{theirs}.{name}")
