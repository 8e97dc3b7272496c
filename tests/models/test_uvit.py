"""U-ViT: its published sizes, its start, its tokens, and what torch can do with it.

That it computes what its authors' code computes is held by tests/interchange, with weights of that code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.models.uvit import UViT
from tests.models.helpers import awake, derivative_in_forward_mode, same_when_checkpointed, same_when_compiled

AT_64 = {"resolution": 64, "classes": 1000, "null_class": False, "patch": 4}
PUBLISHED = {  # parameters as counted in the authors' code
    "S/2 of CIFAR-10": (44_255_328, {"resolution": 32}),
    "M/4 of ImageNet-64": (130_940_292, AT_64 | {"width": 768, "depth": 16, "heads": 12}),
    "L/4 of ImageNet-64": (286_827_652, AT_64 | {"width": 1024, "depth": 20, "heads": 16}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_its_authors_code(name: str) -> None:
    parameters, options = PUBLISHED[name]
    with torch.device("meta"):
        network = UViT(channels=3, out_channels=3, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def small(**options: Any) -> UViT:
    torch.manual_seed(0)
    sizes = {"channels": 3, "out_channels": 3, "resolution": 8, "width": 16, "depth": 4, "heads": 2, "patch": 4}
    return UViT(**sizes | options)  # type: ignore[arg-type]


ALL = {"classes": 3, "qkv_bias": True, "time_layers": True, "skips": False, "last_convolution": False, "mlp_ratio": 1.3}
KINDS: dict[str, dict[str, Any]] = {"published": {"classes": 3}, "other options": ALL}


def batch(network: UViT) -> tuple[Tensor, ...]:
    """Two images, noise labels, and classes of which one is none."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([3.0, 700.7]), torch.tensor([1, network.classes])


def test_torch_compiles_it_without_a_break() -> None:
    network = awake(small(classes=3)).eval()
    same_when_compiled(network, batch(network))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients_and_stores_less(kind: str) -> None:
    def build(checkpointing: bool) -> UViT:
        return awake(small(**KINDS[kind], checkpointing=checkpointing))

    same_when_checkpointed(build, batch(build(False)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_a_derivative_in_forward_mode(kind: str) -> None:
    network = awake(small(**KINDS[kind]))
    derivative_in_forward_mode(network, batch(network))


def test_initial_weights_are_normal_and_the_output_is_not_zero() -> None:
    network = small(width=64, classes=3, time_layers=True)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert layer.bias is None or not layer.bias.any()
    assert network.positions.std().item() == pytest.approx(0.02, rel=0.1)
    assert 1e-3 < network(*batch(network)).std().item() < 1


def test_no_class_is_a_class_of_its_own_or_a_token_of_zeros() -> None:
    for null_class in (True, False):
        network = awake(small(classes=3, null_class=null_class))
        x, label, _ = batch(network)
        assert torch.equal(network(x, label), network(x, label, torch.tensor([3, 3])))
        before = network(x, label)
        nn.init.zeros_(network.class_embedding.weight)  # type: ignore[union-attr]
        assert torch.equal(network(x, label), before) is not null_class
    with pytest.raises(ValueError, match="class_label needs a model with classes"):
        small()(x, label, torch.tensor([0, 0]))


def test_skip_connections_lead_from_the_first_block_to_the_last() -> None:
    """What the first block gives reaches the last one, though all between them is silenced."""
    network = awake(small())
    seen: dict[int, Tensor] = {}
    network.before[0].register_forward_hook(lambda m, given, out: seen.__setitem__(0, out))
    network.after[-1].register_forward_hook(lambda m, given, out: seen.__setitem__(1, given[1]))
    network(*batch(network)[:2])
    assert torch.equal(seen[0], seen[1])
    assert [block.join is not None for block in small(skips=False).after] == [False, False]


def test_the_noise_label_is_the_first_token_as_it_is() -> None:
    """Cosines, then sines, and behind the token of the class."""
    network, seen = small(classes=3), []
    network.before[0].register_forward_hook(lambda m, given, out: seen.append(given[0]))
    x, label, classes = batch(network)
    network(x, label, classes)
    class_token, time_token = (seen[0] - network.positions)[:, :2].unbind(1)
    frequencies = 10_000 ** (-torch.arange(8) / 8)
    angles = label[:, None] * frequencies
    torch.testing.assert_close(time_token, torch.cat([angles.cos(), angles.sin()], 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(class_token, network.class_embedding(classes))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 30}, "patch must divide data.resolution=30, got 4"),
        ({"width": 18, "heads": 4}, "width must be a multiple of heads=4, got 18"),
        ({"width": 3, "heads": 3}, "width must be even, got 3"),
        ({"depth": 5}, "depth must be even"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"classes": -1}, "classes must be at least 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be at least"),
        ({"width": 2**20}, "width must be at most"),
    ],
)
def test_sizes_that_make_no_network_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
