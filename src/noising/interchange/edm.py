"""The layout of EDM: its SongUNet (DDPM++ and NCSN++) and its DhariwalUNet (ADM).

Names: https://github.com/NVlabs/edm. The files that circulate are pickles, which run code when they are opened: their
state dict is exported first.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from noising.errors import require
from noising.interchange.layout import Described, Shapes, numbered
from noising.interchange.places import at, first_convolution, levels_named, named_by_resolution
from noising.interchange.tensor_maps import Entry, HeadRows, Storage, SwappedHalves, Transposed, layer
from noising.interchange.u_shape_layout import AttentionNames, BlockNames, UShapeLayout, require_plain
from noising.models.blocks import Attention
from noising.models.song_unet import SongUNet
from noising.models.unet import UNet


class EDM(UShapeLayout):
    """Layers named by resolution, ``enc.32x32_block0``; prefix: before all names, as of `EDMPrecond`'s file."""

    network: SongUNet | UNet
    families = (SongUNet, UNet)
    block = BlockNames(".norm0", ".conv0", ".affine", ".norm1", ".conv1", ".skip")
    attention = AttentionNames(".norm2", (".qkv",), ".proj")

    def __init__(self, network: SongUNet | UNet, resolution: int, prefix: str = "model.") -> None:
        super().__init__(network)
        self.resolution, self.prefix = resolution, prefix

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "EDM":
        cls.require_family(network)
        if isinstance(network, UNet):
            require_plain(options, "norm_eps", "endpoint", "scale_shift")
            message = "EDM's ADM halves and doubles in residual blocks: model.residual_resampling=true"
            require(bool(options.get("residual_resampling")), message)
        return cls(cast(SongUNet | UNet, network), resolution)

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return any(name.endswith("map_layer0.weight") for name in shapes)

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: head_width of ADM, heads of DDPM++, groups. The names tell the resolution."""
        prefix = next(name for name in shapes if name.endswith("map_layer0.weight")).removesuffix("map_layer0.weight")
        names = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        first, resolution = first_convolution(names)
        width, channels = names[first][0], names[first][1]
        levels = levels_named(names, resolution, "norm0.weight")
        song = f"dec.{resolution}x{resolution}_aux_conv.weight" in names
        last = f"dec.{resolution}x{resolution}_aux_conv.weight" if song else "out_conv.weight"
        sizes: dict[str, Any] = {
            "channels": channels,
            "out_channels": names[last][0],
            "resolution": resolution,
            "classes": names["map_label.weight"][1] if "map_label.weight" in names else 0,
            "width": width,
            "multipliers": [names[f"{place}0.conv0.weight"][0] // width for place in levels.values()],
            "blocks": numbered(names, levels[resolution]),
            "attention": [side for side, place in levels.items() if f"{place}0.qkv.weight" in names],
            "groups": facts.get("groups", 32),
        }
        if not song:
            adm = {"head_width": facts.get("head_width") or 64, "residual_resampling": True, "channels_per_group": 4}
            options = sizes | adm | {"null_class": False}
            return Described(UNet, options, partial(cls, resolution=resolution, prefix=prefix))
        filters = [shape[-1] for name, shape in names.items() if name.endswith("resample_filter")]
        options = {
            **sizes,
            "heads": facts.get("heads", 1),
            "augmentation_labels": names["map_augment.weight"][1] if "map_augment.weight" in names else 0,
            "fourier": "map_noise.freqs" in names,
            "pyramid": any("_aux_residual" in name for name in names),
            "taps": [1, 3, 3, 1] if 4 in filters else [1, 1],
        }
        return Described(SongUNet, options, partial(cls, resolution=resolution, prefix=prefix))

    def rows(self, attention: Attention) -> Storage:
        return HeadRows(attention.heads, (2, 0, 1))

    def entries(self) -> Iterator[Entry]:
        network, prefix = self.network, self.prefix
        if isinstance(network, SongUNet):
            yield from self._embeddings_of_song(network)
        else:
            yield from self._embeddings_of_adm(network)
        yield from layer("first", network.first, f"{prefix}enc.{at(self.resolution, 0)}_conv")
        for path, name, module in named_by_resolution(network, self.resolution):
            yield from self.stage(path, module, prefix + name, prefix + name)
            number = path.removeprefix("down.")
            if isinstance(network, SongUNet) and number in network.pyramid:
                pyramid: Any = network.pyramid[number]
                there = f"{prefix}{name.removesuffix('_down')}_aux_residual"
                yield from layer(f"pyramid.{number}.convolution", pyramid.convolution, there)
        song = isinstance(network, SongUNet)
        full = f"dec.{at(self.resolution, 0)}_aux"
        ends = (f"{full}_norm", f"{full}_conv") if song else ("out_norm", "out_conv")
        yield from layer("last_norm", network.last_norm, prefix + ends[0])
        yield from layer("last", network.last, prefix + ends[1])

    def _embeddings_of_song(self, network: SongUNet) -> Iterator[Entry]:
        if network.fourier:
            yield Entry("noise_features.frequencies", (f"{self.prefix}map_noise.freqs",))
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, f"{self.prefix}map_label")
        if network.augmentation_embedding is not None:
            yield from layer("augmentation_embedding", network.augmentation_embedding, f"{self.prefix}map_augment")
        for ours, theirs in ((0, "map_layer0"), (2, "map_layer1")):
            yield from layer(f"layers.{ours}", network.layers[ours], self.prefix + theirs)

    def _embeddings_of_adm(self, network: UNet) -> Iterator[Entry]:
        first, last = network.noise_embedding.layers[0], network.noise_embedding.layers[2]
        yield from layer("noise_embedding.layers.0", first, f"{self.prefix}map_layer0", SwappedHalves())
        yield from layer("noise_embedding.layers.2", last, f"{self.prefix}map_layer1")
        if network.class_embedding is not None:
            yield from layer("class_embedding", network.class_embedding, f"{self.prefix}map_label", Transposed())

    def constants(self) -> dict[str, Tensor]:
        """The filters of the resampling layers."""
        found: dict[str, Tensor] = {}
        for _, name, module in named_by_resolution(self.network, self.resolution):
            if not name.endswith(("_down", "_up")):
                continue
            kernel, place = module.residual.resample.kernel[None, None], self.prefix + name
            found |= {f"{place}.{path}.resample_filter": kernel for path in ("conv0", "skip")}
            if name.endswith("_down") and isinstance(self.network, SongUNet) and len(self.network.pyramid):
                found[f"{place.removesuffix('_down')}_aux_residual.resample_filter"] = kernel
        return found
