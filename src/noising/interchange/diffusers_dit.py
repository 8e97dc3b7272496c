"""The layout of diffusers' DiTTransformer2DModel.

Names: https://github.com/huggingface/diffusers.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from noising.errors import require
from noising.interchange.diffusers_config import options_said
from noising.interchange.dit import DiTLayout, DiTNames
from noising.interchange.layout import Described, Shapes
from noising.interchange.tensor_maps import Entry, Repeated, Separate, SwappedHalves, layer
from noising.interchange.token_layout import TokenBlockNames
from noising.models.dit import NORM_EPS, DiT
from noising.models.tokens import FeedForward, ModulatedBlock, TokenAttention, sinusoidal_positions

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
"""DiTTransformer2DModel's options and their defaults, for those that a config.json leaves out."""

KNOWN: dict[str, list[Any]] = {
    "attention_bias": [True],
    "activation_fn": ["gelu-approximate"],
    "norm_type": ["ada_norm_zero"],
    "norm_elementwise_affine": [False],
    "norm_eps": [1e-6, 1e-5],  # of tokens whose variance is about 1: it changes outputs by less than 1e-5
}
"""Values of the options that a network here can have."""

EMBEDDER = "norm1.emb"
"""The layers that embed the noise label and the class, of which each block there has its own."""


class DiffusersDiT(DiTLayout):
    """Numbered ``transformer_blocks``, each with a copy of the embeddings.

    Without classes, the network there has one, whose row is zero. Its sinusoids reach the longest wavelength with the
    last pair, those of DiT's own code do not: the same weights differ by half of the output.
    """

    names = DiTNames(
        patches="pos_embed.proj",
        table=f"transformer_blocks.0.{EMBEDDER}.class_embedder.embedding_table",
        blocks="transformer_blocks",
        last_modulation="proj_out_1",
        last_out="proj_out_2",
    )
    of_block = TokenBlockNames(
        query_key_value=("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        attention_out="attn1.to_out.0",
        layer_in="ff.net.0.proj",
        layer_out="ff.net.2",
        modulation="norm1.linear",
    )
    rows = Separate()

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight" in shapes

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: config, the content of the file's ``config.json``; without it, as `PublishedDiT`; endpoint."""
        config = facts.get("config")
        said = options_said(config or {}, DEFAULTS, KNOWN)
        heads = {"heads": said["num_attention_heads"]} if config else {}
        options = cls.options_of(shapes, {**facts, **heads})
        fits = not config or options["width"] == said["num_attention_heads"] * said["attention_head_dim"]
        require(fits, f"config.json is not of this file, whose tokens have {options['width']} channels")
        options["resolution"] = said["sample_size"] if config else resolution
        options["endpoint"] = facts.get("endpoint", True)
        if options["classes"] == 1:
            options["classes"] = 0
        return Described(DiT, options, cls)

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "DiffusersDiT":
        cls.require_family(network)
        network = cast(DiT, network)
        rows = network.class_embedding is None or network.class_embedding.learns_none
        require(rows, "the layout has no place for model.null_class=false")
        width = network.patches.out_channels
        inner = cast(FeedForward, cast(ModulatedBlock, network.blocks[0]).feed_forward).layer_in.out_features
        require(inner == 4 * width, f"the layout has no place for model.mlp_ratio={inner / width:g}, only for 4")
        table = sinusoidal_positions(math.isqrt(len(network.positions)), network.positions.shape[1])
        same = torch.allclose(network.positions.cpu(), table, atol=1e-5)
        require(same, "the layout has no place for another table of positions than DiT's own")
        return cls(network)

    def config(self) -> dict[str, Any]:
        """The options of diffusers' network."""
        network, width = self.network, self.network.patches.out_channels
        heads = cast(TokenAttention, cast(ModulatedBlock, network.blocks[0]).attention).heads
        return {
            **DEFAULTS,
            "_class_name": "DiTTransformer2DModel",
            "num_attention_heads": heads,
            "attention_head_dim": width // heads,
            "in_channels": network.patches.in_channels,
            "out_channels": network.last.out.out_features // network.patch**2,
            "num_layers": len(network.blocks),
            "sample_size": math.isqrt(len(network.positions)) * network.patch,
            "patch_size": network.patch,
            "num_embeds_ada_norm": network.classes or 1,
            "norm_eps": NORM_EPS,
        }

    @property
    def copies(self) -> list[str]:
        """The places of the embeddings."""
        return [f"{self.names.blocks}.{number}.{EMBEDDER}" for number in range(len(self.network.blocks))]

    def embeddings(self) -> Iterator[Entry]:
        network, copies = self.network, self.copies
        linear_1, linear_2 = network.noise_embedding.layers[0], network.noise_embedding.layers[2]
        found = layer("noise_embedding.layers.0", linear_1, "timestep_embedder.linear_1", SwappedHalves())
        found += layer("noise_embedding.layers.2", linear_2, "timestep_embedder.linear_2")
        if network.class_embedding is not None:
            found += layer("class_embedding", network.class_embedding, "class_embedder.embedding_table")
        for ours, (name,), storage in found:
            there = tuple(f"{copy}.{name}" for copy in copies)
            yield Entry(ours, there, Repeated(len(copies), storage))

    def constants(self) -> dict[str, Tensor]:
        if self.network.class_embedding is not None:
            return {}
        rows = torch.zeros(2, self.network.patches.out_channels)  # of one class, and of none
        return {f"{copy}.class_embedder.embedding_table.weight": rows for copy in self.copies}

    def read(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = super().read(theirs)
        nothing = not any(theirs[name].any() for name in self.constants())
        require(nothing, "it has one class, whose row is not zero: no network here has one class")
        return {"positions": self.network.positions, **ours}  # which the file does not hold
