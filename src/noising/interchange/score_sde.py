"""The layout of score SDE's DDPM++ and NCSN++, which rectified flow's files have too.

Names: https://github.com/yang-song/score_sde_pytorch, https://github.com/gnobitab/RectifiedFlow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import nn

from noising.interchange.layout import Described, Shapes, numbered
from noising.interchange.places import down, up
from noising.interchange.tensor_maps import SAME, Entry, Scaled, Separate, Transposed, layer
from noising.interchange.u_shape_layout import AttentionNames, BlockNames, UShapeLayout
from noising.models.blocks import Attention
from noising.models.song_unet import SongUNet


class ScoreSDE(UShapeLayout):
    """One numbered list ``all_modules``, in the order in which the image passes them.

    prefix: before all names; label_scale: a Fourier embedding there is of that many times the noise label here;
    negated: the network there gives the opposite of what it gives here, as rectified flow's x − ε.
    """

    network: SongUNet
    families = (SongUNet,)
    block = BlockNames(".GroupNorm_0", ".Conv_0", ".Dense_0", ".GroupNorm_1", ".Conv_1", ".Conv_2")
    unused = ("sigmas",)  # noise levels, which continuous times do not need
    attention = AttentionNames(".GroupNorm_0", (".NIN_0", ".NIN_1", ".NIN_2"), ".NIN_3")

    def __init__(
        self, network: SongUNet, prefix: str = "module.", label_scale: float = 1.0, negated: bool = False
    ) -> None:
        super().__init__(network)
        self.prefix, self.label_scale, self.negated = prefix, label_scale, negated

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "ScoreSDE":
        """facts: negated."""
        cls.require_family(network)
        return cls(cast(SongUNet, network), negated=facts.get("negated", False))

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return any("all_modules." in name for name in shapes)

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: label_scale, negated, taps (by default [1, 3, 3, 1] in NCSN++)."""
        prefix = next(name for name in shapes if "all_modules." in name).split("all_modules.")[0]
        names = {name.removeprefix(f"{prefix}all_modules."): shape for name, shape in shapes.items()}
        count = numbered(names, "")
        residual = [n for n in range(count) if f"{n}.Conv_0.weight" in names]
        resampling = [n for n in residual if f"{n}.Conv_2.weight" in names and _keeps(names[f"{n}.Conv_0.weight"])]
        levels = 1 + len(resampling) // 2
        blocks = (len(residual) // levels - 3) // 2
        firsts = [residual[level * (blocks + 1)] for level in range(levels)]
        first, fourier = names[f"{residual[0] - 1}.weight"], "0.W" in names
        options = {
            "channels": first[1],
            "out_channels": names[f"{count - 1}.weight"][0],
            "resolution": resolution,
            "width": first[0],
            "multipliers": [names[f"{n}.Conv_0.weight"][0] // first[0] for n in firsts],
            "blocks": blocks,
            "attention": [resolution >> level for level, n in enumerate(firsts) if f"{n + 1}.NIN_0.W" in names],
            "fourier": fourier,
            "pyramid": any("Conv2d_0" in name for name in names),
            "taps": facts.get("taps") or ([1, 3, 3, 1] if fourier else [1, 1]),
        }
        said = {name: facts[name] for name in ("label_scale", "negated") if name in facts}
        return Described(SongUNet, options, partial(cls, prefix=prefix, **said))

    def entries(self) -> Iterator[Entry]:
        network, number = self.network, 0

        def following() -> str:
            nonlocal number
            number += 1
            return f"{self.prefix}all_modules.{number - 1}"

        if network.fourier:
            yield Entry("noise_features.frequencies", (f"{following()}.W",), Scaled(1 / self.label_scale))
        for ours in (0, 2):
            yield from layer(f"layers.{ours}", network.layers[ours], following())
        yield from layer("first", network.first, following())
        for place, (path, module, _, _) in enumerate(down(network)):
            yield from self._stage(path, module, following)
            if str(place) in network.pyramid:
                added: Any = network.pyramid[str(place)]
                yield from layer(f"pyramid.{place}.convolution", added.convolution, f"{following()}.Conv2d_0")
        for ours, module in enumerate(network.middle):
            yield from self._stage(f"middle.{ours}", module, following)
        for path, module, _, _ in up(network):
            yield from self._stage(path, module, following)
        yield from layer("last_norm", network.last_norm, following())
        there, storage = following(), Scaled(-1.0) if self.negated else SAME
        yield from layer("last", network.last, there, storage, storage)

    def _stage(self, path: str, stage: Any, following: Callable[[], str]) -> Iterator[Entry]:
        yield from self.stage(path, stage, following(), "" if stage.attention is None else following())

    def attends(self, ours: str, attention: Attention, theirs: str) -> Iterator[Entry]:
        names = self.attention
        yield from layer(f"{ours}.norm", attention.norm, theirs + names.norm)
        for part, there in (("weight", "W"), ("bias", "b")):
            matrices = tuple(f"{theirs}{name}.{there}" for name in names.query_key_value)
            yield Entry(f"{ours}.query_key_value.{part}", matrices, Separate(transposed=True))
            storage = Transposed() if part == "weight" else SAME
            yield Entry(f"{ours}.out.{part}", (f"{theirs}{names.out}.{there}",), storage)


def _keeps(shape: Sequence[int]) -> bool:
    """Whether a convolution has as many channels behind it as before it."""
    return shape[0] == shape[1]
