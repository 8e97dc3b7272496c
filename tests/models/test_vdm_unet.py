"""VDM's network: its start, its input's Fourier features, what it reads, and the sizes that it refuses.

Its counts, levels and derivatives are held beside the other U-Nets' in test_published_networks.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.models.embeddings import PixelFourierFeatures
from noising.models.vdm_unet import VDMUNet


def small(**options: Any) -> VDMUNet:
    torch.manual_seed(0)
    sizes = {"channels": 3, "out_channels": 3, "resolution": 8, "width": 16, "blocks": 1, "groups": 4}
    return VDMUNet(**sizes | options)


@pytest.mark.parametrize("attention", [False, True])
def test_the_output_is_the_input_before_training(attention: bool) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(small(attention=attention)(x, torch.tensor([3.0, 700.0])), x)


def test_initial_weights_have_lecuns_variance_and_every_block_adds_nothing() -> None:
    """1/fan in, of a normal distribution cut at two standard deviations; biases are zero."""
    network = small(width=128, groups=32)
    for weight in (
        network.down[0].residual.conv_in.weight,  # type: ignore[union-attr]
        network.middle[0].attention.query_key_value.weight,  # type: ignore[union-attr]
        network.layers[2].weight,
        network.up[0].residual.shortcut.weight,  # type: ignore[union-attr]
    ):
        assert isinstance(weight, Tensor)
        std = weight[0].numel() ** -0.5
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert weight.abs().max().item() == pytest.approx(2 * std / 0.8796, rel=1e-2)
    for name, parameter in network.named_parameters():
        ends = ("conv_out.weight", "scale_shift.weight", "attention.out.weight", "last.weight")
        zero = name.endswith(("bias", *ends))
        norm = name.endswith("weight") and "norm" in name
        assert bool((parameter == (1 if norm else 0)).all()) == (zero or norm), name


def test_fourier_features_are_sines_then_cosines_channel_by_channel() -> None:
    x = torch.tensor([0.25, -0.1], dtype=torch.float64).reshape(1, 2, 1, 1)
    features = PixelFourierFeatures([0, 1]).double()(x).flatten().tolist()
    angles = [2 * math.pi * factor * value for value in (0.25, -0.1) for factor in (1, 2)]
    assert features == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-6)


def test_fourier_features_tell_an_even_grey_level_from_an_odd_one() -> None:
    """In VDM's scale: levels at the centres of 256 bins of [−1, 1]."""
    grey = ((2 * torch.arange(256, dtype=torch.float64) + 1) / 256 - 1).reshape(1, 1, 16, 16)
    sines = PixelFourierFeatures([6]).double()(grey)[0, 0].flatten()
    parity = torch.where(torch.arange(256) % 2 == 0, 1.0, -1.0).double()
    torch.testing.assert_close(sines, parity, atol=1e-4, rtol=0)


def stirred(network: VDMUNet) -> VDMUNet:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def test_it_reads_the_level_the_class_and_the_augmentation() -> None:
    network = stirred(small(classes=3, augmentation_labels=2))
    x, label, classes, augmentation = (
        torch.randn(2, 3, 8, 8),
        torch.tensor([5.0, 9]),
        torch.tensor([0, 2]),
        torch.eye(2),
    )
    given = network(x, label, classes, augmentation)
    for other in (
        network(x, label + 1, classes, augmentation),
        network(x, label, torch.tensor([1, 1]), augmentation),
        network(x, label, classes, torch.zeros(2, 2)),
    ):
        assert bool(((other - given).abs().flatten(1).amax(1) > 1e-3).all())
    assert torch.equal(network(x, label), network(x, label, torch.tensor([3, 3]), torch.zeros(2, 2)))


def test_the_papers_conditioning_number_is_there_without_augmentation() -> None:
    network, x, label = stirred(small()), torch.randn(2, 3, 8, 8), torch.tensor([5.0, 9])
    assert isinstance(network.layers[0], nn.Linear)
    assert network.layers[0].in_features == 17
    assert torch.equal(network(x, label), network(x, label, None, torch.zeros(2, 1)))
    assert not torch.equal(network(x, label), network(x, label, None, torch.ones(2, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 6}, "VDMUNet predicts noise alone, 3 channels, not 6: use variance=fixed_small"),
        ({"frequencies": [6, 17]}, r"frequencies must be exponents from 0 to 16, got \[6, 17\]"),
        ({"frequencies": [-1]}, "frequencies must be exponents"),
        ({"width": 18}, "width must be a multiple of groups=4, got 18"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"augmentation_labels": -1}, "augmentation_labels must be at least 0, got -1"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_sizes_that_make_no_network_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
