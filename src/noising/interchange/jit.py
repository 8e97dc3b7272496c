"""The layout of JiT. Names: https://github.com/LTH14/JiT."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from torch import nn

from noising.errors import require
from noising.interchange.layout import Described, Shapes, numbered
from noising.interchange.tensor_maps import BatchAxis, Entry, Pointwise, SwappedHalves, layer
from noising.interchange.token_layout import TokenLayout, require_same_channels, side_of
from noising.models.jit import JiT, gated_width

FIRST = "x_embedder.proj1.weight"


class JiTLayout(TokenLayout):
    """Numbered ``blocks`` between ``x_embedder`` and ``final_layer``; prefix: before all names."""

    network: JiT
    families = (JiT,)
    feed_forward = ("w12", "w3")

    def __init__(self, network: JiT, prefix: str = "net.") -> None:
        super().__init__(network)
        self.prefix = prefix

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return any(name.endswith(FIRST) for name in shapes)

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: class_tokens_at. Shapes tell the resolution."""
        prefix = next(name for name in shapes if name.endswith(FIRST)).removesuffix(FIRST)
        names = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        bottleneck, channels, patch = (names[FIRST][axis] for axis in (0, 1, 3))
        width, inner = names["x_embedder.proj2.weight"][0], names["blocks.0.mlp.w3.weight"][1]
        depth, tokens = numbered(names, "blocks."), names.get("in_context_posemb", (1, 0))[1]
        usual = gated_width(4.0, width) == inner
        options = {
            "channels": channels,
            "out_channels": names["final_layer.linear.weight"][0] // patch**2,
            "resolution": patch * side_of(names["pos_embed"][1]),
            "classes": names["y_embedder.embedding_table.weight"][0] - 1,
            "width": width,
            "depth": depth,
            "heads": width // names["blocks.0.attn.q_norm.weight"][0],
            "patch": patch,
            "bottleneck": bottleneck,
            "mlp_ratio": 4.0 if usual else 1.5 * (inner + 0.5) / width,  # two thirds of it, rounded down, are inner
            "class_tokens": tokens,
            "class_tokens_at": facts.get("class_tokens_at"),
        }
        return Described(JiT, options, partial(cls, prefix=prefix))

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "JiTLayout":
        cls.require_family(network)
        jit = cast(JiT, network)
        channels: Any = jit.patches[0].in_channels
        require_same_channels(jit, channels, jit.last.out.out_features // jit.patch**2)
        require(jit.classes > 0, "this layout's JiT has classes, the run's network has none")
        return cls(jit)

    def entries(self) -> Iterator[Entry]:
        network, prefix = self.network, self.prefix
        yield Entry("positions", (f"{prefix}pos_embed",), BatchAxis())
        if network.class_positions is not None:
            yield Entry("class_positions", (f"{prefix}in_context_posemb",), BatchAxis())
        first, last = network.noise_embedding.layers[0], network.noise_embedding.layers[2]
        yield from layer("noise_embedding.layers.0", first, f"{prefix}t_embedder.mlp.0", SwappedHalves())
        yield from layer("noise_embedding.layers.2", last, f"{prefix}t_embedder.mlp.2")
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, f"{prefix}y_embedder.embedding_table")
        yield from layer("patches.0", network.patches[0], f"{prefix}x_embedder.proj1")
        yield from layer("patches.1", network.patches[1], f"{prefix}x_embedder.proj2", Pointwise(4))
        block: Any
        for number, block in enumerate(network.blocks):
            ours, theirs = f"blocks.{number}", f"{prefix}blocks.{number}"
            yield from self.block(ours, block, theirs)
            yield from layer(f"{ours}.modulation", block.modulation, f"{theirs}.adaLN_modulation.1")
        for own, name in (("norm", "norm_final"), ("out", "linear"), ("modulation", "adaLN_modulation.1")):
            yield from layer(f"last.{own}", getattr(network.last, own), f"{prefix}final_layer.{name}")
