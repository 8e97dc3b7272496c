"""The layout of diffusers' UNet2DModel, as of ``google/ddpm-cifar10-32``.

Names: https://github.com/huggingface/diffusers.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from noising.errors import require
from noising.interchange.diffusers_config import foreign, options_said
from noising.interchange.layout import Described, Shapes
from noising.interchange.places import Place, down, levels, up
from noising.interchange.tensor_maps import SAME, Entry, Pointwise, Separate, Storage, SwappedHalves, layer
from noising.interchange.u_shape_layout import AttentionNames, BlockNames, UShapeLayout
from noising.models.blocks import Attention, Stage
from noising.models.unet import UNet

NAMES_NOW = AttentionNames(".group_norm", (".to_q", ".to_k", ".to_v"), ".to_out.0")
NAMES_BEFORE = AttentionNames(".group_norm", (".query", ".key", ".value"), ".proj_attn")


DEFAULTS: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
"""UNet2DModel's options and their defaults, for those that a config.json leaves out."""

MIRRORED = {
    "DownBlock2D": "UpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
}
"""The kind of block on the way up for each on the way down."""

OF_DDPM: dict[str, Any] = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [128, 256, 256, 256],
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
"""The config.json of ``google/ddpm-cifar10-32``, where it differs from the defaults."""

KNOWN: dict[str, list[Any]] = {
    "center_input_sample": [False],
    "time_embedding_type": ["positional"],
    "freq_shift": [0, 1],
    "mid_block_scale_factor": [1],
    "downsample_padding": [1, 0],
    "downsample_type": ["conv", "resnet"],
    "upsample_type": ["conv", "resnet"],
    "act_fn": ["silu", "swish"],
    "resnet_time_scale_shift": ["default", "scale_shift"],
    "add_attention": [True],
    "class_embed_type": [None],
}
"""Values of the options that a network here can have."""


class DiffusersUNet(UShapeLayout):
    """``down_blocks``, a ``mid_block`` and ``up_blocks``."""

    families = (UNet,)
    network: UNet
    block = BlockNames(".norm1", ".conv1", ".time_emb_proj", ".norm2", ".conv2", ".conv_shortcut")

    def __init__(self, network: UNet, old_names: bool = False, cosines_first: bool = False) -> None:
        """old_names: the attention's of the first files; cosines_first: the sinusoids' order."""
        super().__init__(network)
        self.cosines_first = cosines_first
        self.attention = NAMES_BEFORE if old_names else NAMES_NOW

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return "time_embedding.linear_1.weight" in shapes

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: config, the content of the file's ``config.json``, by default that of ``google/ddpm-cifar10-32``.

        Raises ValueError for an option that none of the networks here has.
        """
        config: Mapping[str, Any] = facts.get("config") or OF_DDPM
        known = "config" in facts or shapes["conv_in.weight"][0] == OF_DDPM["block_out_channels"][0]
        require(known, "config.json is missing beside the file: it says what network the weights are of")
        said = options_said(config, DEFAULTS, KNOWN)
        downs, ups, widths = list(said["down_block_types"]), list(said["up_block_types"]), said["block_out_channels"]
        attending = set(downs) == {"AttnDownBlock2D"}
        residual = "ResnetDownsampleBlock2D" in downs or (attending and said["downsample_type"] == "resnet")
        plain, resampling = ("ResnetDownsampleBlock2D", "resnet") if residual else ("DownBlock2D", "conv")
        expected = [kind if kind == "AttnDownBlock2D" else plain for kind in downs]
        require(downs == expected, foreign("down_block_types", downs, expected))
        mirrored = [MIRRORED[kind] for kind in reversed(downs)]
        require(ups == mirrored, foreign("up_block_types", ups, mirrored))
        if "AttnDownBlock2D" in downs:  # the other kinds do not read these
            for name in ("downsample_type", "upsample_type"):
                require(said[name] == resampling, foreign(name, said[name], resampling))
        groups, of_attention = said["norm_num_groups"], said["attn_norm_num_groups"]
        scales = said["resnet_time_scale_shift"] == "scale_shift"  # whose middle attention has no norm without groups
        allowed = (groups,) if scales else (None, groups)
        require(of_attention in allowed, foreign("attn_norm_num_groups", of_attention, groups))
        width, resolution, head_width = widths[0], said["sample_size"], said["attention_head_dim"]
        options = {
            "channels": said["in_channels"],
            "out_channels": said["out_channels"],
            "resolution": resolution,
            "classes": said["num_class_embeds"] or 0,
            "null_class": False,
            "width": width,
            "multipliers": [of_level // width for of_level in widths],
            "blocks": said["layers_per_block"],
            "attention": [resolution >> level for level, kind in enumerate(downs) if kind == "AttnDownBlock2D"],
            "heads": 1,
            "head_width": head_width,
            "groups": groups,
            "norm_eps": said["norm_eps"],
            "dropout": said["dropout"],
            "scale_shift": scales,
            "residual_resampling": residual,
            "corner_padding": said["downsample_padding"] == 0,
            "endpoint": said["freq_shift"] == 1,
        }
        old_names = any(".proj_attn." in name for name in shapes)
        made = partial(cls, old_names=old_names, cosines_first=said["flip_sin_to_cos"])
        return Described(UNet, options, made)

    def rows(self, attention: Attention) -> Storage:
        return Separate()

    def pointwise(self) -> Storage:
        return Pointwise(2)

    def entries(self) -> Iterator[Entry]:
        network = self.network
        linear_1, linear_2 = network.noise_embedding.layers[0], network.noise_embedding.layers[2]
        columns = SwappedHalves() if self.cosines_first else SAME
        yield from layer("noise_embedding.layers.0", linear_1, "time_embedding.linear_1", columns)
        yield from layer("noise_embedding.layers.2", linear_2, "time_embedding.linear_2")
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, "class_embedding")
        yield from layer("first", network.first, "conv_in")
        yield from self._way(down(network), "down_blocks", "downsamplers", lambda level: level)
        for number, module in enumerate(network.middle):
            yield from self.stage(f"middle.{number}", module, f"mid_block.resnets.{number}", "mid_block.attentions.0")
        least = levels(network) - 1
        yield from self._way(up(network), "up_blocks", "upsamplers", lambda level: least - level)
        yield from layer("last_norm", network.last_norm, "conv_norm_out")
        yield from layer("last", network.last, "conv_out")

    def _way(
        self, places: Iterator[Place], blocks: str, resamplers: str, number: Callable[[int], int]
    ) -> Iterator[Entry]:
        """The entries of the way down or up; number: of the block there of a level here."""
        for path, module, level, block in places:
            there = f"{blocks}.{number(level)}"
            if block is not None:
                yield from self.stage(path, module, f"{there}.resnets.{block}", f"{there}.attentions.{block}")
                continue
            there = f"{blocks}.{number(level) - 1}.{resamplers}.0"  # at the end of the block before
            if isinstance(module, Stage):
                yield from self.stage(path, module, there, "")
            elif isinstance(module, nn.Sequential):
                yield from layer(f"{path}.1", module[1], f"{there}.conv")
            else:
                yield from layer(path, module, f"{there}.conv")
