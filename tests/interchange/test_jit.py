"""The layout of JiT: options read from names and shapes, and what names do not tell.

That a file of theirs gives their outputs and comes back, and that all tensors of the published size have their place,
is in test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from noising.interchange.jit import JiTLayout
from noising.interchange.layouts import LAYOUTS, recognized
from noising.models.jit import JiT, Norm, gated_width
from tests.interchange.helpers import fixture, layout_of, read_shapes

SIZES: dict[str, Any] = {"channels": 3, "out_channels": 3, "resolution": 8, "width": 16, "heads": 2, "patch": 4}
SIZES |= {"depth": 4, "classes": 3, "bottleneck": 5, "class_tokens": 2}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_tokens": 0, "classes": 1},
        {"class_tokens_at": 3},
        {"width": 24, "heads": 3, "bottleneck": 30, "depth": 2},
        {"channels": 1, "out_channels": 1, "resolution": 12, "patch": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["net.", ""])
def test_every_option_is_read_from_names_and_shapes(options: dict[str, Any], prefix: str) -> None:
    made = SIZES | options
    torch.manual_seed(0)
    network = JiT(**made)
    network.load_state_dict({name: torch.randn(tensor.shape) for name, tensor in network.state_dict().items()})
    layout = JiTLayout.fitting(network, made, made["resolution"])
    theirs = {name.replace("net.", prefix): tensor for name, tensor in layout.write(network.state_dict()).items()}
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    assert recognized(shapes) == "jit"
    _, read, of_file = LAYOUTS["jit"].describe(
        shapes, 0, **{k: v for k, v in options.items() if k == "class_tokens_at"}
    )
    assert made.items() <= read.items()
    again = JiT(**read)
    assert again.class_tokens_at == network.class_tokens_at
    again.load_state_dict(of_file(again).read(theirs))
    x, label = torch.randn(2, made["channels"], made["resolution"], made["resolution"]), torch.tensor([0.1, 0.9])
    assert torch.equal(again(x, label), network(x, label))


@pytest.mark.parametrize("width", [16, 24, 100])
def test_every_width_of_the_gated_layers_is_read(width: int) -> None:
    given = fixture("jit_class_incontext")
    shapes = {name: list(tensor.shape) for name, tensor in given.weights.items()}
    shapes["net.x_embedder.proj2.weight"][0] = width
    for inner in range(1, 300):
        shapes["net.blocks.0.mlp.w3.weight"][1] = inner
        ratio = JiTLayout.describe(shapes, 0).options["mlp_ratio"]
        assert gated_width(ratio, width) == inner


def output_of(fault: Callable[[JiT], None]) -> float:
    """How far the outputs of a network with a fault are from the fixture's."""
    given = fixture("jit_class_incontext")
    layout: Any = layout_of(given.facts, {key: tensor.shape for key, tensor in given.weights.items()})
    network = layout.network.eval()
    network.load_state_dict(layout.read(given.weights))
    fault(network)
    with torch.no_grad():
        found = network(given.inputs["x"], given.inputs["t"], given.inputs["y"])
    return float((found - given.outputs["out"]).abs().max() / given.outputs["out"].abs().max())


def other_eps(network: JiT) -> None:
    for module in network.modules():
        if isinstance(module, Norm):
            module.eps = 1e-5


def tokens_later(network: JiT) -> None:
    network.class_tokens_at += 1


def columns_first(network: JiT) -> None:
    for table in (network.cosine, network.sine):
        table.copy_(table.roll(table.shape[1] // 2, 1))


def turned_tokens(network: JiT) -> None:
    network.cosine[: network.class_tokens] = network.cosine[network.class_tokens :][: network.class_tokens].clone()
    network.sine[: network.class_tokens] = network.sine[network.class_tokens :][: network.class_tokens].clone()


def keys_at_other_places(network: JiT) -> None:
    for block in network.blocks:
        block.attention.key_norm.register_forward_hook(lambda m, given, out: out.flip(2))  # type: ignore[union-attr]


def halves_not_pairs(network: JiT) -> None:
    for table in ("cosine", "sine"):
        network.register_buffer(table, getattr(network, table).flip(1), persistent=False)


def value_gates(network: JiT) -> None:
    for block in network.blocks:
        layer: Any = block.feed_forward.layer_in  # type: ignore[union-attr]
        for part in (layer.weight, layer.bias):
            part.data = part.data.roll(len(part) // 2, 0)


def shift_for_scale(network: JiT) -> None:
    last: Any = network.last.modulation
    for part in (last.weight, last.bias):
        part.data = part.data.roll(len(part) // 2, 0)


def sines_first(network: JiT) -> None:
    weight: Tensor = network.noise_embedding.layers[0].weight
    weight.data = weight.data.roll(weight.shape[1] // 2, 1)


def rows_and_columns(network: JiT) -> None:
    network.positions.copy_(network.positions.roll(network.positions.shape[1] // 2, 1))


@pytest.mark.parametrize(
    "fault",
    [
        *(other_eps, tokens_later, columns_first, turned_tokens, keys_at_other_places),
        *(halves_not_pairs, value_gates, shift_for_scale, sines_first, rows_and_columns),
    ],
)
def test_another_reading_of_the_same_names_is_seen(fault: Callable[[JiT], None]) -> None:
    assert output_of(fault) > 2e-4


def test_networks_that_it_has_no_place_for_are_refused() -> None:
    with pytest.raises(ValueError, match="gives as many channels as it takes, 3, not 6"):
        JiTLayout.fitting(JiT(**SIZES | {"out_channels": 6}), {}, 8)
    with pytest.raises(ValueError, match="this layout's JiT has classes, the run's network has none"):
        JiTLayout.fitting(JiT(**SIZES | {"classes": 0, "class_tokens": 0}), {}, 8)


def test_incomplete_files_are_refused_in_words() -> None:
    given = fixture("jit_class_incontext")
    whole = {key: tuple(tensor.shape) for key, tensor in given.weights.items()}
    faulty = [{key: shape for key, shape in whole.items() if key != lost} for lost in [*whole][::3]]
    faulty += [{**whole, "net.pos_embed": (1, 7, 48)}, {**whole, "net.x_embedder.proj1.weight": (16, 3)}]
    faulty += [{**whole, "net.final_layer.linear.weight": (0, 48)}, {**whole, "net.in_context_posemb": (1, 5, 4)}]
    for shapes in faulty:
        with pytest.raises(ValueError, match=r"lacks|has no place|in the network|no complete|no square|must be"):
            read_shapes(given, shapes)
