"""DiT and SiT: their published sizes, their start, what they are told, and what torch can do with them.

That they compute what their authors' code computes is held by tests/interchange, with weights of that code.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.models.dit import DiT
from noising.models.tokens import sinusoidal_positions
from tests.models.helpers import awake, derivative_in_forward_mode, same_when_checkpointed, same_when_compiled

LATENTS = {"channels": 4, "out_channels": 8, "resolution": 32, "classes": 1000}
CIFAR = {"channels": 3, "out_channels": 6, "resolution": 32, "classes": 10}
B = {"width": 768, "heads": 12}
PUBLISHED: dict[str, tuple[int, int, dict[str, Any]]] = {  # numbers in the authors' state dict, those trained, options
    "S/2": (32_963_360, 32_865_056, LATENTS),
    "S/4": (32_945_024, 32_920_448, LATENTS | {"patch": 4}),
    "S/8": (33_148_160, 33_142_016, LATENTS | {"patch": 8}),
    "B/2": (130_512_416, 130_315_808, LATENTS | B),
    "B/4": (130_475_648, 130_426_496, LATENTS | B | {"patch": 4}),
    "B/8": (130_881_536, 130_869_248, LATENTS | B | {"patch": 8}),
    "L/2": (458_102_816, 457_840_672, LATENTS | {"width": 1024, "depth": 24, "heads": 16}),
    "XL/2": (675_129_632, 674_834_720, LATENTS | {"width": 1152, "depth": 28, "heads": 16}),
    "SiT-XL/2": (
        *(675_129_632, 674_834_720),
        LATENTS | {"width": 1152, "depth": 28, "heads": 16, "out_channels": 4, "drops_variance": True},
    ),
    "S/2 of CIFAR-10": (32_578_584, 32_480_280, CIFAR),
    "S/2 of CIFAR-10 without a variance": (32_573_964, 32_475_660, CIFAR | {"out_channels": 3}),
    "S/4 of CIFAR-10": (32_546_400, 32_521_824, CIFAR | {"patch": 4}),
    "S/4 of CIFAR-10 without a variance": (32_527_920, 32_503_344, CIFAR | {"patch": 4, "out_channels": 3}),
    "B/2 of CIFAR-10": (129_742_872, 129_546_264, CIFAR | B),
    "B/2 of CIFAR-10 without a variance": (129_733_644, 129_537_036, CIFAR | B | {"out_channels": 3}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_its_authors_code(name: str) -> None:
    stored, trained, options = PUBLISHED[name]
    with torch.device("meta"):
        network = DiT(**options)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == stored
    assert sum(parameter.numel() for parameter in network.parameters()) == trained


def small(**options: Any) -> DiT:
    torch.manual_seed(0)
    sizes = {"channels": 3, "out_channels": 6, "resolution": 8, "width": 16, "depth": 3, "heads": 2}
    return DiT(**sizes | options)  # type: ignore[arg-type]


KINDS: dict[str, dict[str, Any]] = {
    "DiT": {"classes": 3},
    "SiT without classes": {"out_channels": 3, "drops_variance": True, "patch": 4, "mlp_ratio": 1.3, "endpoint": True},
}


def batch(network: DiT) -> tuple[Tensor | None, ...]:
    """Two images, noise labels, and classes of which one is none, where there are classes."""
    generator = torch.Generator().manual_seed(2)
    x, noise_label = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([3.0, 700.7])
    return x, noise_label, torch.tensor([1, network.classes]) if network.classes else None


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_exactly_zero_before_training(kind: str) -> None:
    network = small(**KINDS[kind])
    assert torch.equal(network(*batch(network)), torch.zeros(2, network.out_channels, 8, 8))


def test_every_block_is_the_identity_before_training() -> None:
    network = small(classes=3)
    tokens, embedded = torch.randn(2, 16, 16), torch.randn(2, 16)
    for block in network.blocks:
        assert torch.equal(block(tokens, embedded), tokens)


def test_initial_weights_are_those_of_the_paper() -> None:
    """Uniform by Glorot, patches as a matrix; embeddings normal with .02; modulations and the last layer zero."""
    network = small(width=128, depth=2, classes=50)
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        rows, columns = module.weight.flatten(1).shape
        assert not module.bias.any(), name  # type: ignore[union-attr]
        if name.endswith("modulation") or name == "last.out":
            assert not module.weight.any(), name
        elif name.startswith("noise_embedding"):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03), name
        else:
            expected = math.sqrt(6 / (rows + columns))  # the bound of a uniform variable of variance 2/(rows + columns)
            assert module.weight.abs().max().item() == pytest.approx(expected, rel=0.01), name
            assert module.weight.std().item() == pytest.approx(expected / math.sqrt(3), rel=0.04), name
    assert network.class_embedding is not None
    assert network.class_embedding.weight.shape == (51, 128)
    assert network.class_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_positions_are_the_column_and_the_row_of_a_patch() -> None:
    """Row 2, column 1 of 4: sines, then cosines of the column, then those of the row, in float64."""
    width, row, column = 16, 2, 1
    waves = [10_000.0 ** (-i / (width // 4)) for i in range(width // 4)]
    expected = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in waves]
    found = sinusoidal_positions(4, width)[row * 4 + column]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-7)
    network = small()
    assert not network.positions.requires_grad
    assert torch.equal(network.state_dict()["positions"], sinusoidal_positions(4, width))


def test_a_patch_of_the_output_is_of_the_patch_of_the_input() -> None:
    """Without attention's and the embeddings' part, each output patch depends on its own input patch alone."""
    network = awake(small(classes=3))
    for block in network.blocks:
        nn.init.zeros_(block.attention.out.weight)  # type: ignore[union-attr,arg-type]
    x, label, classes = batch(network)
    assert x is not None
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1
    apart = (network(changed, label, classes) - network(x, label, classes)).abs().amax((0, 1)) > 0  # (8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 6:8] = True
    assert torch.equal(apart, expected)


def test_no_class_is_the_number_of_classes_and_none() -> None:
    network = awake(small(classes=3))
    x, label, _ = batch(network)
    none = network(x, label)
    assert torch.equal(none, network(x, label, torch.tensor([3, 3])))
    assert not torch.allclose(none, network(x, label, torch.tensor([0, 0])))
    rowless = awake(small(classes=3, null_class=False))
    assert rowless.class_embedding is not None
    assert rowless.class_embedding.weight.shape == (3, 16)
    with torch.no_grad():
        rowless.class_embedding.weight[0] = 0
    assert torch.equal(rowless(x, label), rowless(x, label, torch.tensor([0, 0])))


def test_a_dropped_variance_leaves_the_first_half_of_the_output() -> None:
    whole, half = small(classes=3), small(classes=3, out_channels=3, drops_variance=True)
    half.load_state_dict(awake(whole).state_dict())
    torch.testing.assert_close(half(*batch(half)), whole(*batch(whole))[:, :3], rtol=0, atol=0)


def test_the_longest_wavelength_is_reached_with_an_endpoint_only() -> None:
    for endpoint, longest in ((False, 10_000 ** (127 / 128)), (True, 10_000.0)):
        frequencies = small(endpoint=endpoint).noise_embedding.sinusoids.frequencies
        assert frequencies.shape == (128,)
        assert 1 / frequencies[-1].item() == pytest.approx(longest, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_compiles_it_without_a_break(kind: str) -> None:
    network = awake(small(**KINDS[kind])).eval()
    same_when_compiled(network, batch(network))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients_and_stores_less(kind: str) -> None:
    def build(checkpointing: bool) -> DiT:
        return awake(small(**KINDS[kind], checkpointing=checkpointing))

    same_when_checkpointed(build, batch(build(False)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_a_derivative_in_forward_mode(kind: str) -> None:
    network = awake(small(**KINDS[kind]))
    derivative_in_forward_mode(network, batch(network))


def test_a_class_is_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="class_label needs a model with classes"):
        small()(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "patch must divide data.resolution=8, got 3"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"heads": 3}, "width must be a multiple of heads=3, got 16"),
        ({"width": 18}, "width must be a multiple of 4, got 18"),
        ({"width": 2**20}, "width must be at most 65536"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"depth": 10_000}, "depth must be at most 1000"),
        ({"classes": -1}, "classes must be at least 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be at least 1/16 and at most 4096, got 0.0"),
        ({"mlp_ratio": 1e9}, "mlp_ratio must be at least 1/16"),
    ],
)
def test_sizes_that_make_no_network_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
