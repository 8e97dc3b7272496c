"""The layout of U-ViT: options read from names and shapes, and what names do not tell.

That a file of theirs gives their outputs and comes back, and that all tensors of the published sizes have their place,
is in test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from noising.interchange.layouts import LAYOUTS, recognized
from noising.interchange.uvit import UViTLayout
from noising.models.jit import JiT
from noising.models.uvit import UViT
from tests.interchange.helpers import fixture, layout_of, read_shapes

SIZES: dict[str, Any] = {"channels": 3, "out_channels": 3, "resolution": 8, "width": 16, "heads": 2, "patch": 2}
SIZES |= {"depth": 4, "classes": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"qkv_bias": True},
        {"time_layers": True, "classes": 3, "null_class": False},
        {"classes": 3, "null_class": True},
        {"skips": False, "last_convolution": False},
        {"mlp_ratio": 2.3125, "depth": 2, "patch": 4},
        {"channels": 1, "out_channels": 1, "resolution": 12},
        {"width": 64, "heads": 8},
    ],
    ids=str,
)
def test_every_option_is_read_from_names_and_shapes(options: dict[str, Any]) -> None:
    made = SIZES | options
    network = UViT(**made)
    theirs = UViTLayout.fitting(network, made, made["resolution"]).write(network.state_dict())
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    assert recognized(shapes) == "uvit"
    facts = {"heads": made["heads"], "null_class": options.get("null_class", False)}
    _, read, layout = LAYOUTS["uvit"].describe(shapes, 0, **facts)
    assert made.items() <= ({"null_class": False} | read | ({} if made["classes"] else {"null_class": False})).items()
    again = UViT(**read)
    again.load_state_dict(layout(again).read(theirs))
    x, label = torch.randn(2, made["channels"], made["resolution"], made["resolution"]), torch.tensor([3.0, 700.0])
    assert torch.equal(again(x, label), network(x, label))


def silenced(attribute: str) -> Callable[[UViT], None]:
    def fault(network: UViT) -> None:
        getattr(network, attribute).weight.data.mul_(0)

    return fault


def other_eps(network: UViT) -> None:
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def other_gelu(network: UViT) -> None:
    for block in [*network.before, network.middle, *network.after]:
        block.feed_forward.approximate = "tanh"  # type: ignore[union-attr]


def half_the_heads(network: UViT) -> None:
    for block in [*network.before, network.middle, *network.after]:
        block.attention.heads = 1  # type: ignore[union-attr]


def other_rows(network: UViT) -> None:
    for block in network.before:
        rows: Any = block.attention.query_key_value.weight  # type: ignore[union-attr]
        rows.data = rows.data.view(2, 3, -1, rows.shape[1]).transpose(0, 1).reshape(rows.shape)


def sines_first(network: UViT) -> None:
    half = network.sinusoids.frequencies.shape[0]
    network.sinusoids.register_forward_hook(lambda m, given, out: out.roll(half, 1))


def time_before_class(network: UViT) -> None:
    network.positions.data[:2] = network.positions.data[:2].flip(0)


@pytest.mark.parametrize(
    ("fault", "least"),
    [
        (other_eps, 2e-5),
        (other_gelu, 2e-5),
        (half_the_heads, 0.01),
        (other_rows, 0.05),
        (sines_first, 0.05),
        (time_before_class, 1e-4),
        (silenced("last_convolution"), 0.1),
    ],
)
def test_another_reading_of_the_same_names_is_seen(fault: Callable[[UViT], None], least: float) -> None:
    given = fixture("uvit_class")
    layout: Any = layout_of(given.facts, {key: tensor.shape for key, tensor in given.weights.items()})
    network = layout.network.eval()
    network.load_state_dict(layout.read(given.weights))
    fault(network)
    with torch.no_grad():
        found = network(given.inputs["x"], given.inputs["timesteps"], given.inputs["y"])
    expected = given.outputs["out"]
    assert (found - expected).abs().max() / expected.abs().max() > least


def test_heads_that_no_published_network_has_are_asked_for() -> None:
    shapes = {name: tensor.shape for name, tensor in fixture("uvit_class").weights.items()}
    with pytest.raises(ValueError, match="do not tell the heads of 32 channels: say it by"):
        UViTLayout.describe(shapes, 0)
    assert UViTLayout.describe(shapes, 0, head_width=16).options["heads"] == 2


def test_networks_that_it_has_no_place_for_are_refused() -> None:
    with pytest.raises(ValueError, match="gives as many channels as it takes, 3, not 6"):
        UViTLayout.fitting(UViT(**SIZES | {"out_channels": 6}), {}, 8)
    with pytest.raises(ValueError, match="this layout is of UViT, the run's network is a JiT"):
        UViTLayout.fitting(JiT(channels=3, out_channels=3, resolution=8, width=8, depth=1, heads=1), {}, 8)


def test_incomplete_files_are_refused_in_words() -> None:
    given = fixture("uvit_class")
    whole = {key: tuple(tensor.shape) for key, tensor in given.weights.items()}
    faulty = [{key: shape for key, shape in whole.items() if key != lost} for lost in whole]
    faulty += [{**whole, "pos_embed": (1, 7, 32)}, {**whole, "patch_embed.proj.weight": (32, 3)}]
    faulty += [{**whole, "decoder_pred.weight": (0, 32)}, {**whole, "patch_embed.proj.weight": (32, 3, 0, 0)}]
    for shapes in faulty:
        with pytest.raises(ValueError, match=r"lacks|has no place|in the network|no complete|no square|must be"):
            read_shapes(given, shapes)
