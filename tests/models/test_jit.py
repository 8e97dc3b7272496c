"""JiT: its published sizes, its start, its class tokens and angles, and what torch can do with it.

That it computes what its authors' code computes is held by tests/interchange, with weights of that code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noising.models.jit import JiT, gated_width
from noising.models.tokens import Rotation
from tests.models.helpers import awake, derivative_in_forward_mode, same_when_checkpointed, same_when_compiled

B = {"width": 768, "depth": 12, "heads": 12, "classes": 1000, "class_tokens": 32}
L = B | {"width": 1024, "depth": 24, "heads": 16}
H = B | {"width": 1280, "depth": 32, "heads": 16, "bottleneck": 256}
PUBLISHED = {  # parameters as counted in the authors' code, which counts the fixed positions
    "B/16": (131_320_320, 131_123_712, B | {"resolution": 256, "patch": 16}),
    "L/16": (459_139_808, 458_877_664, L | {"resolution": 256, "patch": 16}),
    "H/16": (952_842_048, 952_514_368, H | {"resolution": 256, "patch": 16}),
    "B/32": (133_387_008, 133_190_400, B | {"resolution": 512, "patch": 32}),
    "L/32": (461_796_320, 461_534_176, L | {"resolution": 512, "patch": 32}),
    "B/4": (130_674_480, 130_477_872, B | {"resolution": 64, "patch": 4}),
    "S/4 without class tokens": (32_582_064, 32_557_488, {"resolution": 32, "classes": 10}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_its_authors_code(name: str) -> None:
    parameters, trained, options = PUBLISHED[name]
    with torch.device("meta"):
        network = JiT(channels=3, out_channels=3, **options)  # type: ignore[arg-type]
    found = sum(parameter.numel() for parameter in network.parameters())
    assert (found + network.positions.numel(), found) == (parameters, trained)


@pytest.mark.parametrize(("depth", "at"), [(12, 4), (24, 8), (32, 10)])
def test_class_tokens_come_in_where_they_do_in_the_published_networks(depth: int, at: int) -> None:
    assert small(depth=depth, width=8, heads=1).class_tokens_at == at


def small(**options: Any) -> JiT:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 3, "out_channels": 3, "resolution": 8, "patch": 4, "bottleneck": 5}
    sizes |= {"classes": 3, "width": 16, "depth": 4, "heads": 2, "class_tokens": 3}
    return JiT(**sizes | options)


KINDS: dict[str, dict[str, Any]] = {"published": {}, "without classes": {"class_tokens": 0, "classes": 0}}


def batch(network: JiT) -> tuple[Tensor | None, ...]:
    """Two images, noise labels, and classes of which one is none."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.tensor([1, network.classes]) if network.classes else None
    return torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([0.3, 0.9]), classes


def test_torch_compiles_it_without_a_break() -> None:
    network = awake(small()).eval()
    same_when_compiled(network, batch(network))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients_and_stores_less(kind: str) -> None:
    def build(checkpointing: bool) -> JiT:
        return awake(small(**KINDS[kind], checkpointing=checkpointing, dropout=0.3))

    same_when_checkpointed(build, batch(build(False)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_a_derivative_in_forward_mode(kind: str) -> None:
    network = awake(small(**KINDS[kind]))
    derivative_in_forward_mode(network, batch(network))


def test_it_computes_in_bfloat16_what_it_computes_in_float32() -> None:
    network = awake(small()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*batch(network))
    exact = network(*batch(network))
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_output_is_exactly_zero_before_training_and_blocks_are_the_identity() -> None:
    network = small()
    tokens, embedded = torch.randn(2, 4, 16), torch.randn(2, 16)
    rotation = Rotation(network.cosine[3:], network.sine[3:])
    assert torch.equal(network(*batch(network)), torch.zeros(2, 3, 8, 8))
    for block in network.blocks:
        assert torch.equal(block(tokens, embedded, rotation), tokens)


def test_initial_weights_have_glorots_variance_and_those_of_the_embeddings_are_small() -> None:
    network = small(width=64, bottleneck=32)
    block = network.blocks[0]
    for layer, inputs, outputs in (
        (block.attention.query_key_value, 64, 192),
        (block.feed_forward.layer_in, 64, 340),
        (network.patches[0], 48, 32),
        (network.patches[1], 32, 64),
    ):
        assert layer.weight.var().item() == pytest.approx(2 / (inputs + outputs), rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    first, last = network.noise_embedding.layers[0], network.noise_embedding.layers[2]
    for weight in (first.weight, last.weight, network.class_embedding.weight, network.class_positions):  # type: ignore[union-attr]
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)  # type: ignore[union-attr,operator]


def test_class_tokens_are_ahead_of_the_patches_from_their_block_on() -> None:
    network, seen = awake(small(class_tokens_at=2)), []
    for block in network.blocks:
        block.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    x, label, classes = batch(network)
    network(x, label, classes)
    assert [tokens.shape[1] for tokens in seen] == [4, 4, 7, 7]
    expected = network.class_embedding(classes)[:, None] + network.class_positions  # type: ignore[misc]
    assert torch.equal(seen[2][:, :3], expected)
    assert torch.equal(network(x, label), network(x, label, torch.tensor([3, 3])))


def test_dropout_is_in_the_middle_half_of_the_blocks() -> None:
    for depth, expected in ((12, range(3, 9)), (6, range(1, 3))):  # as theirs: depth // 4 to 3 (depth // 4)
        found = [block.feed_forward.dropout.p for block in small(depth=depth, dropout=0.2).blocks]  # type: ignore[union-attr]
        assert found == [0.2 if number in expected else 0.0 for number in range(depth)]
        assert found == [block.attention.dropout.p for block in small(depth=depth, dropout=0.2).blocks]  # type: ignore[union-attr]


def test_a_product_of_turned_vectors_depends_on_how_far_apart_their_places_are() -> None:
    side, width, ahead = 4, 8, 2
    rotation = Rotation.of_places(side, width, ahead)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, width, generator=generator)
    queries, keys = (rotation(v.expand(1, 1, ahead + side**2, width))[0, 0] for v in (query, key))
    assert torch.equal(queries[:ahead], query.expand(ahead, width))
    products = (queries[ahead:] @ keys[ahead:].T).view(side, side, side, side)  # row, column of either
    torch.testing.assert_close(products[1, 2, 3, 3], products[0, 1, 2, 2])  # two rows and one column further
    torch.testing.assert_close(products[0, 0, 0, 0], query @ key)
    assert not torch.isclose(products[0, 0, 0, 1], products[0, 0, 1, 0])
    angle = torch.atan2(rotation.sine, rotation.cosine)[ahead:].view(side, side, 4)
    torch.testing.assert_close(angle[3, 1], torch.tensor([3.0, 0.03, 1.0, 0.01]))  # row, then column


@pytest.mark.parametrize(("width", "inner"), [(768, 2048), (1024, 2730), (1280, 3413), (384, 1024)])
def test_gated_layers_are_two_thirds_as_wide(width: int, inner: int) -> None:
    assert gated_width(4.0, width) == inner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 30}, "patch must divide data.resolution=30, got 4"),
        ({"width": 12}, r"width must be a multiple of 4 \* heads=8, got 12"),
        ({"bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        ({"class_tokens": -1}, "class_tokens must be at least 0"),
        ({"classes": 0}, "class_tokens needs classes"),
        ({"class_tokens_at": 4}, "class_tokens_at must be from 0 to 3, a block, got 4"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be at least"),
    ],
)
def test_sizes_that_make_no_network_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
