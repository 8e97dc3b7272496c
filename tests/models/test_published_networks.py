"""The published U-Nets: their number of parameters, their levels, their start, and what torch can do with them.

That they compute what their authors' code computes is held by tests/interchange, with weights of that code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.interchange import places
from noising.models.blocks import Double, FilteredConvolution, Halve, HalvingConvolution, Stage
from noising.models.song_unet import SongUNet
from noising.models.u_shape import UShape
from noising.models.unet import UNet
from tests.models.helpers import (
    PUBLISHED,
    awake,
    derivative_in_forward_mode,
    same_when_checkpointed,
    same_when_compiled,
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_its_authors_code(name: str) -> None:
    network = PUBLISHED[name].build()
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[name].parameters


LEVELS = {
    "ddpm": "128x2@32 256x2@16A 256x2@8 256x2@4 | 256x3@4 256x3@8 256x3@16A 128x3@32",
    "iddpm": "128x3@32 256x3@16A 256x3@8A 256x3@4 | 256x4@4 256x4@8A 256x4@16A 128x4@32",
    "iddpm at 64": "128x3@64 256x3@32 384x3@16A 512x3@8A | 512x4@8A 384x4@16A 256x4@32 128x4@64",
    "adm at 64": "192x3@64 384x3@32A 576x3@16A 768x3@8A | 768x4@8A 576x4@16A 384x4@32A 192x4@64",
    "edm's ddpm++": "256x4@32 256x4@16A 256x4@8 | 256x5@8 256x5@16a 256x5@32",
    "score sde's ddpm++": "128x4@32 256x4@16A 256x4@8 256x4@4 | 256x5@4 256x5@8 256x5@16a 128x5@32",
    "edm2 s": "192x3@64 384x3@32 576x3@16A 768x3@8A | 768x4@8A 576x4@16A 384x4@32 192x4@64",
    "vdm": "128x32@32 | 128x33@32",
    "vdm of augmented images, the paper's": "256x32@32A | 256x33@32A",
}
SKIPS = {"ddpm": 12, "iddpm": 16, "iddpm at 64": 16, "adm at 64": 16, "edm's ddpm++": 15, "score sde's ddpm++": 20}
SKIPS |= {"edm2 s": 16, "vdm": 33, "vdm of augmented images, the paper's": 33}


@pytest.mark.parametrize("name", LEVELS)
def test_its_levels_have_the_channels_the_blocks_and_the_attention_of_the_paper(name: str) -> None:
    """A: attention after every block of the level, a: after the last."""
    network, resolution = PUBLISHED[name].build(), PUBLISHED[name].options["resolution"]
    x = torch.empty(1, 3, resolution, resolution, device="meta")
    seen: dict[nn.Module, tuple[int, ...]] = {}
    hooks = [m.register_forward_hook(lambda m, _, out: seen.__setitem__(m, out.shape)) for m in stages(network)]
    joined: list[int] = []
    descend = network.descend
    network.descend = lambda *args: (lambda h, skips: joined.append(len(skips)) or (h, skips))(*descend(*args))  # type: ignore[method-assign]
    network(x, torch.empty(1, device="meta"))
    for hook in hooks:
        hook.remove()

    def side(walk: Callable[[UShape], Iterator[places.Place]]) -> str:
        levels: dict[int, list[Stage]] = {}
        for place in walk(network):
            if place.block is not None:
                levels.setdefault(place.level, []).append(place.module)  # type: ignore[arg-type]
        words = []
        for blocks in levels.values():
            (_, channels, height, width), attends = seen[blocks[0]], [b.attention is not None for b in blocks]
            assert height == width
            mark = (
                "A" if all(attends) else "a" if attends == [False] * (len(blocks) - 1) + [True] else "?" * any(attends)
            )
            words.append(f"{channels}x{len(blocks)}@{height}{mark}")
        return " ".join(words)

    assert f"{side(places.down)} | {side(places.up)}" == LEVELS[name]
    assert joined == [SKIPS[name]]
    assert [middle.attention is not None for middle in network.middle] == [True, False]


def stages(network: UShape) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, Stage)]


SMALL: dict[str, dict[str, Any]] = {
    "ddpm": {"groups": 4},
    "iddpm": {"groups": 4},
    "adm at 64": {"head_width": 8, "groups": 4, "classes": 3},
    "edm's ddpm++ with classes": {"classes": 3},
    "edm's ncsn++": {},
    "edm's ncsn++ with classes": {"classes": 3},
    "edm2 s": {"head_width": 8, "classes": 3, "log_variance_waves": 0},
    "vdm": {"multipliers": None, "attention": True, "groups": 4, "augmentation_labels": 9, "frequencies": [0]},
}


def small(name: str, **others: Any) -> UShape:
    """The network with all its parts, two levels, few channels."""
    sizes = {"resolution": 8, "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.0}
    torch.manual_seed(0)
    options = sizes | SMALL[name] | others
    return PUBLISHED[name].build("cpu", **{option: value for option, value in options.items() if value is not None})


def batch(network: Any) -> tuple[Tensor, ...]:
    """Two images, their noise labels, classes where there are, and augmentation labels where there are."""
    generator = torch.Generator().manual_seed(2)
    x, label = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([3.0, 0.7])
    classes = (torch.tensor([1, network.classes]),) if network.classes else (None,)
    augmentation = torch.randn(2, 9, generator=generator) if network.augmentation_labels else None
    return x, label, *classes, augmentation  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["iddpm", "adm at 64", "edm2 s"])
def test_the_output_is_exactly_zero_before_training(name: str) -> None:
    network = small(name)
    assert torch.equal(network(*batch(network)), torch.zeros(2, network.last.out_channels, 8, 8))


@pytest.mark.parametrize("name", ["ddpm", "edm's ddpm++ with classes", "edm's ncsn++"])
def test_the_output_is_about_a_hundred_thousandth_before_training(name: str) -> None:
    """Variance 1e-10 of the last weights: the output's standard deviation is 1e-5 times that of Glorot's weights."""
    network = small(name, resolution=8)
    size = network(*batch(network)).std().item()
    assert 2e-6 < size < 5e-5
    for stage in stages(network):
        assert stage.residual.conv_out.weight.abs().max() < 1e-5  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(("name", "scale"), [("ddpm", 1.0), ("edm's ddpm++", 0.1)])
def test_initial_weights_have_glorots_variance(name: str, scale: float) -> None:
    """2/(fan in + fan out); query, key and value are three matrices, in score SDE with a tenth of it."""
    network = PUBLISHED[name].build("cpu", width=64, multipliers=[2], blocks=1, attention=[32], resolution=32)
    block = network.down[0]
    weight = block.residual.conv_in.weight  # (128, 64, 3, 3)
    assert weight.var().item() == pytest.approx(2 / (9 * (64 + 128)), rel=0.02)
    assert weight.abs().max().item() == pytest.approx((3 * 2 / (9 * (64 + 128))) ** 0.5, rel=1e-3)  # uniform
    assert block.residual.conv_in.bias.abs().max() == 0
    for matrix in block.attention.query_key_value.weight.flatten(1).chunk(3):  # (128, 128) each
        assert matrix.var().item() == pytest.approx(scale * 2 / 256, rel=0.03)


@pytest.mark.parametrize(
    "name", ["ddpm", "adm at 64", "edm's ncsn++ with classes", "edm2 s", "vdm"]
)  # every kind of layer
def test_torch_compiles_it_without_a_break(name: str) -> None:
    network = awake(small(name)).eval()
    same_when_compiled(network, batch(network))


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_gives_the_same_gradients_and_stores_less(name: str) -> None:
    def build(checkpointing: bool) -> UShape:
        return awake(small(name, checkpointing=checkpointing, dropout=0.1))

    same_when_checkpointed(build, batch(build(False)))


@pytest.mark.parametrize("name", SMALL)
def test_it_has_a_derivative_in_forward_mode(name: str) -> None:
    network = awake(small(name))
    derivative_in_forward_mode(network, batch(network))


@pytest.mark.parametrize(("taps", "size"), [([1, 1], 8), ([1, 3, 3, 1], 8), ([1, 3, 3, 1], 4)])
def test_resampling_keeps_the_mean_and_a_slope(taps: list[int], size: int) -> None:
    """Of a constant image both keep the value, away from the border; of a slope they keep the slope."""
    slope = torch.arange(float(size)).expand(1, 2, size, size)
    inner = slice(1, -1)
    halved, doubled = Halve(taps)(slope), Double(taps)(slope)
    assert halved.shape == (1, 2, size // 2, size // 2)
    assert doubled.shape == (1, 2, 2 * size, 2 * size)
    centres = torch.arange(size // 2) * 2.0 + 0.5  # of pairs of pixels
    torch.testing.assert_close(halved[0, 0, inner, inner], centres[inner].expand(size // 2 - 2, -1))
    if len(taps) == 4:  # interpolates linearly: a quarter of a pixel to either side
        fine = (torch.arange(2 * size) - 0.5) / 2
        torch.testing.assert_close(doubled[0, 0, 2:-2, 2:-2], fine[2:-2].expand(2 * size - 4, -1))
    else:
        assert torch.equal(doubled, slope.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_a_filtered_convolution_is_a_filter_and_then_a_convolution_of_every_second_pixel() -> None:
    torch.manual_seed(0)
    layer = FilteredConvolution(1, 1, [1, 3, 3, 1]).double()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    side = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    around = torch.nn.functional.pad(x, (3, 3, 3, 3))
    whole = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    for row in range(4):
        for column in range(4):
            whole += side[row] * side[column] * around[:, :, row : row + 9, column : column + 9]
    expected = torch.nn.functional.conv2d(whole, layer.convolution.weight, layer.convolution.bias)[:, :, 1::2, 1::2]
    torch.testing.assert_close(layer(x), expected[:, :, :3, :3])


def test_corner_padding_pads_at_the_right_and_the_bottom() -> None:
    layer = HalvingConvolution(1, corner=True)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    sums = [[x[0, 0, r : r + 3, c : c + 3].sum() for c in (0, 2)] for r in (0, 2)]
    torch.testing.assert_close(layer(x)[0, 0], torch.tensor(sums))


def test_what_a_network_is_not_told_is_refused() -> None:
    x, label = torch.zeros(2, 3, 8, 8), torch.zeros(2)
    for name in ("ddpm", "edm's ncsn++"):
        with pytest.raises(ValueError, match="class_label needs a model with classes"):
            small(name)(x, label, torch.zeros(2, dtype=torch.long))
    for network in (small("ddpm"), small("edm's ncsn++", augmentation_labels=0)):
        with pytest.raises(ValueError, match="augmentation needs a model"):
            network(x, label, None, torch.zeros(2, 9))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            UNet,
            {"resolution": 30, "multipliers": [1, 2, 2, 2]},
            "multipliers needs data.resolution divisible by 8, got 30",
        ),
        (UNet, {"head_width": 24}, "head_width must divide the 32 channels of a level with attention, got 24"),
        (UNet, {"head_width": 0}, "head_width must be at least 1, got 0"),
        (SongUNet, {"taps": [1, 2, 1]}, r"taps must be an even number of filter taps .*got \[1, 2, 1\]"),
        (SongUNet, {"augmentation_labels": -1}, "augmentation_labels must be at least 0, got -1"),
        (SongUNet, {"width": 2}, "width must be at least channels_per_group=4, got 2"),
        (SongUNet, {"width": 44, "multipliers": [1, 3]}, "width must be a multiple of groups"),
    ],
)
def test_sizes_that_make_no_network_are_named(family: type[UShape], options: dict[str, Any], message: str) -> None:
    sizes = {"channels": 3, "out_channels": 3, "resolution": 8, "width": 16, "multipliers": [1, 2], "attention": [4]}
    with pytest.raises(ValueError, match=message):
        family(**sizes | options)
