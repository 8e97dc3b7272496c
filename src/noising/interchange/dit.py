"""The layout of DiT, which SiT's files have too.

Names: https://github.com/facebookresearch/DiT, https://github.com/willisma/SiT.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

from torch import nn

from noising.errors import require
from noising.interchange.layout import Described, Shapes, numbered
from noising.interchange.tensor_maps import SAME, Entry, Scaled, Storage, layer
from noising.interchange.token_layout import TokenLayout, heads_of, side_of
from noising.models.dit import DiT


class DiTNames(NamedTuple):
    """A layout's names of the layers of a DiT around its blocks, and of the list of the blocks."""

    patches: str
    table: str
    blocks: str
    last_modulation: str
    last_out: str


class DiTLayout(TokenLayout):
    """The names and the storage of one project's weights, for a DiT."""

    network: DiT
    families = (DiT,)
    names: DiTNames
    last: Storage = SAME
    """The storage of the last layer."""

    @classmethod
    def options_of(cls, shapes: Shapes, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The network's arguments, but for its resolution; facts: as `PublishedDiT` has them."""
        names = cls.names
        width, channels, patch = (shapes[f"{names.patches}.weight"][axis] for axis in (0, 1, 3))
        outputs = shapes[f"{names.last_out}.weight"][0] // patch**2
        table, null_class = shapes.get(f"{names.table}.weight"), facts.get("null_class", True)
        drops = facts.get("drops_variance", False)
        return {
            "channels": channels,
            "out_channels": outputs // 2 if drops else outputs,
            "classes": table[0] - null_class if table else 0,
            "null_class": null_class,
            "patch": patch,
            "width": width,
            "depth": numbered(shapes, f"{names.blocks}."),
            "heads": heads_of(width, facts),
            "mlp_ratio": shapes[f"{names.blocks}.0.{cls.of_block.layer_in}.weight"][0] / width,
            "drops_variance": drops,
        }

    @abstractmethod
    def embeddings(self) -> Iterator[Entry]:
        """The entries of the noise label, the class and, where it is stored, the position."""

    def entries(self) -> Iterator[Entry]:
        network, names = self.network, self.names
        yield from self.embeddings()
        yield from layer("patches", network.patches, names.patches)
        for number, block in enumerate(network.blocks):
            yield from self.block(f"blocks.{number}", block, f"{names.blocks}.{number}")
        yield from layer("last.modulation", network.last.modulation, names.last_modulation)
        yield from layer("last.out", network.last.out, names.last_out, self.last, self.last)


class PublishedDiT(DiTLayout):
    """Numbered ``blocks``, each modulated by its ``adaLN_modulation``.

    negated: the network there gives the opposite of what it gives here, as SiT's x − ε.
    """

    names = DiTNames(
        patches="x_embedder.proj",
        table="y_embedder.embedding_table",
        blocks="blocks",
        last_modulation="final_layer.adaLN_modulation.1",
        last_out="final_layer.linear",
    )

    def __init__(self, network: DiT, negated: bool = False) -> None:
        super().__init__(network)
        self.last = Scaled(-1.0) if negated else SAME

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return "x_embedder.proj.weight" in shapes and "t_embedder.mlp.0.weight" in shapes

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: heads or head_width, null_class, drops_variance, negated."""
        options = cls.options_of(shapes, facts)
        options["resolution"] = side_of(shapes["pos_embed"][1]) * options["patch"]
        return Described(DiT, options, partial(cls, negated=facts.get("negated", False)))

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "PublishedDiT":
        """facts: negated."""
        cls.require_family(network)
        network = cast(DiT, network)
        require(
            not network.endpoint,
            "model.endpoint=true is diffusers' network: write it with to=diffusers, or train with model.endpoint=false",
        )
        return cls(network, facts.get("negated", False))

    def embeddings(self) -> Iterator[Entry]:
        yield from self.embedders(self.network)
