"""EDM2's network: magnitudes that are kept, weights whose length has no effect, and the uncertainty.

What every published network is asked stands in test_published_networks.py; that it computes what its authors' code
computes is held by tests/interchange.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noising.models.edm2 import (
    ClippedStage,
    EDM2UNet,
    RandomCosines,
    UnitConvolution,
    UnitLinear,
    scaled_silu,
    unit_magnitude,
    weighted_sum,
)
from tests.models.helpers import awake

SIZES: dict[str, Any] = {"channels": 3, "out_channels": 3, "resolution": 8, "width": 16, "multipliers": [1, 2]}
SIZES |= {"blocks": 1, "attention": [4], "head_width": 8, "classes": 3, "log_variance_waves": 12}


def small(**others: Any) -> EDM2UNet:
    torch.manual_seed(0)
    return EDM2UNet(**SIZES | others)


def batch(size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, 8, 8, generator=generator)
    return x, torch.linspace(-1.2, 0.9, size), torch.arange(size) % 4


def magnitude(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def weights(network: EDM2UNet) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.ndim > 1}


def test_every_layer_keeps_the_magnitude_of_normal_numbers() -> None:
    torch.manual_seed(0)
    x, h = torch.randn(64, 32, 16, 16), torch.randn(64, 32, 16, 16)
    for y in (
        unit_magnitude(5 * x, (1,)),
        scaled_silu(x),
        weighted_sum(x, h, 0.3),
        UnitConvolution(32, 48, 1)(x),
        UnitConvolution(32, 48, 3)(x)[:, :, 1:-1, 1:-1],  # zeros lie around the image
        UnitLinear(32, 48)(x.transpose(1, 3)),
        RandomCosines(512)(torch.randn(64)),
        small().join(x[:, :8], h),
    ):
        assert magnitude(y) == pytest.approx(1, abs=0.05)


def test_two_parts_beside_each_other_count_the_same() -> None:
    """Whatever their numbers of channels."""
    x, h = torch.ones(1, 8, 4, 4), torch.ones(1, 24, 4, 4)
    joined = small().join(x, h)
    torch.testing.assert_close(joined[:, :8].square().sum(), joined[:, 8:].square().sum())


def test_features_keep_their_magnitude_from_the_first_block_to_the_last() -> None:
    network = small(resolution=16, width=32, multipliers=[1, 2, 3], blocks=2, attention=[8, 4])
    seen: list[float] = []
    for stage in network.modules():
        if isinstance(stage, ClippedStage):
            stage.register_forward_hook(lambda _, __, y: seen.append(magnitude(y)))
    network(torch.randn(4, 3, 16, 16), torch.zeros(4))
    assert len(seen) == 3 * 2 + 2 + 2 + 3 * 3 + 2
    assert 0.6 < min(seen) < max(seen) < 1.3


def test_weights_begin_as_normal_numbers_and_gains_as_zero() -> None:
    network = small(width=64, head_width=64)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and parameter.numel() > 5000:
            assert parameter.std().item() == pytest.approx(1, abs=0.05), name
        elif parameter.ndim == 0:
            assert parameter.item() == 0, name


def test_the_length_of_a_weight_has_no_effect() -> None:
    network, inputs = awake(small()).eval(), batch()
    with torch.no_grad():
        expected = network(*inputs)
        for weight in weights(network).values():
            weight.mul_(torch.linspace(2.0, 5.0, len(weight)).reshape(-1, *[1] * (weight.ndim - 1)))
        torch.testing.assert_close(network(*inputs), expected, rtol=2e-3, atol=2e-3)  # 1e-4 is added to the length


def test_a_call_in_training_gives_all_weights_unit_magnitude_and_one_in_evaluation_none() -> None:
    network, inputs = awake(small()), batch()
    before = {name: weight.detach().clone() for name, weight in weights(network).items()}
    network.eval()(*inputs)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(network).items())
    network.train()(*inputs)
    for name, weight in weights(network).items():
        norms = weight.detach().flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-3, atol=0), name
        assert not torch.equal(weight, before[name])


def test_gradients_stand_upright_on_the_weights() -> None:
    """So a step changes the direction of a weight alone, to first order."""
    network = awake(small()).double().train()
    x, label, classes = batch()
    network(x.double(), label.double(), classes).square().sum().backward()
    for name, weight in weights(network).items():
        if weight.grad is None:
            assert name == "log_variance.linear.weight"
            continue
        along = (weight * weight.grad).flatten(1).sum(1)
        assert (along.abs() <= 3e-4 * weight.norm() * weight.grad.norm()).all(), name


def trained(network: torch.nn.Module, steps: int = 3) -> list[Tensor]:
    """The losses of some steps on one batch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, betas=(0.9, 0.99))
    losses = []
    x, label, classes = batch(4)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (network(x, label, classes) - x.flip(0)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_trained_with_features_computed_again_it_is_the_same() -> None:
    """The weights that a call writes back are not written within a block that is computed again."""
    expected = trained(small())
    assert expected[2] < expected[0]
    torch.testing.assert_close(trained(small(checkpointing=True)), expected, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_trained_and_compiled_it_is_the_same() -> None:
    """The weights are written back within the compiled graph."""
    torch._dynamo.reset()
    network = small()
    compiled: Any = torch.compile(small(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(trained(compiled), trained(network), rtol=1e-5, atol=0)
    for name, weight in weights(network).items():
        torch.testing.assert_close(compiled._orig_mod.get_parameter(name), weight, rtol=1e-3, atol=1e-4)


def test_no_class_is_the_number_after_the_last() -> None:
    network, (x, label, _) = awake(small()).eval(), batch()
    assert torch.equal(network(x, label), network(x, label, torch.tensor([3, 3])))
    assert not torch.equal(network(x, label), network(x, label, torch.tensor([0, 3])))


def test_features_are_clipped_behind_each_block() -> None:
    network, seen = small(clip_features=0.5), []
    for stage in network.modules():
        if isinstance(stage, ClippedStage):
            stage.register_forward_hook(lambda _, __, y: seen.append(float(y.detach().abs().max())))
    network(*batch())
    assert set(seen) == {0.5}


def test_the_uncertainty_is_a_number_of_full_precision_for_each_image() -> None:
    network, label = small(), torch.linspace(-1.0, 1.0, 5)
    assert network.log_variance is not None
    expected = network.log_variance(label)
    assert expected.shape == (5,)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.log_variance(label), expected)
    assert small(log_variance_waves=0).log_variance is None


def test_in_half_precision_it_is_nearly_the_same() -> None:
    network, inputs = awake(small()).train(), batch()
    expected = network(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(*inputs)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    found.square().sum().backward()
    assert all(weight.grad is not None for name, weight in weights(network).items() if "log_variance" not in name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 9}, "multipliers needs data.resolution divisible by 2, got 9"),
        ({"head_width": 24}, "head_width must divide the 32 channels of a level with attention, got 24"),
        ({"noise_waves": 0}, "noise_waves must be at least 1, got 0"),
        ({"embedding": -2}, "embedding must be at least 1, got -2"),
        ({"log_variance_waves": -1}, "log_variance_waves must be at least 0, got -1"),
        ({"clip_features": 0.0}, "clip_features must be positive, got 0.0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_make_no_network_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
