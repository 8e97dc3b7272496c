"""The U-Net's shapes, its start at zero, what its output depends on, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.models.blocks import Attention, group_norm
from noising.models.embeddings import NoiseEmbedding
from noising.models.unet import UNet


def small(**numbers: Any) -> UNet:
    arguments: dict[str, Any] = {"channels": 1, "out_channels": 1, "resolution": 8, "width": 16}
    arguments |= {"multipliers": [1, 2], "blocks": 1, "attention": [4], "heads": 2}
    torch.manual_seed(0)
    return UNet(**(arguments | numbers))


def awake(**numbers: Any) -> UNet:
    """A network none of whose weights is zero: the last layers of all blocks start at zero."""
    model = small(**numbers).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def batch(images: int = 4, channels: int = 1, resolution: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, channels, resolution, resolution, generator=generator)
    return x, 1000 * torch.rand(images, generator=generator)


@pytest.mark.parametrize(
    ("channels", "out_channels", "resolution", "multipliers"),
    [
        (1, 1, 8, [1]),
        (1, 2, 8, [1, 2]),
        (1, 1, 28, [1, 2, 2]),
        (3, 6, 32, [1, 2, 2, 2]),
        (3, 3, 64, [1, 1, 2, 2]),
    ],
)
def test_output_has_the_images_size_and_the_asked_channels(
    channels: int, out_channels: int, resolution: int, multipliers: list[int]
) -> None:
    numbers = {"multipliers": multipliers, "attention": [7, 8], "blocks": 2}
    model = small(channels=channels, out_channels=out_channels, resolution=resolution, **numbers)
    x, noise_label = batch(2, channels, resolution)
    out = model(x, noise_label)
    assert out.shape == (2, out_channels, resolution, resolution)
    assert out.dtype == torch.float32


def test_output_is_zero_before_training() -> None:
    x, noise_label = batch()
    assert torch.equal(small()(x, noise_label), torch.zeros_like(x))


@pytest.mark.parametrize("classes", [0, 3])
def test_every_image_depends_on_its_own_noise_label_only(classes: int) -> None:
    model = awake(classes=classes)
    x, noise_label = batch()
    before = model(x, noise_label)
    noise_label[1] += 100.0
    changed = (model(x, noise_label) - before).abs().amax(dim=(1, 2, 3))
    assert changed[1] > 1e-3
    assert changed[[0, 2, 3]].max() < 1e-5


def test_neighbouring_noise_labels_are_told_apart() -> None:
    model = awake()
    x, _ = batch(1)
    here, next_to_it = model(x, torch.tensor([500.0])), model(x, torch.tensor([501.0]))
    assert (here - next_to_it).abs().max() > 1e-4


def test_the_embedding_is_of_the_label_itself() -> None:
    """Sines and cosines at wavelengths 2π to 2π · 10,000, in float64, of labels that are no whole numbers."""
    label = torch.tensor([0.3, 7.25, 499.51], dtype=torch.float64)
    embedding, seen = NoiseEmbedding(16, 8), []
    embedding.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embedding(label)
    angles = label[:, None] * 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    expected = torch.cat([angles.sin(), angles.cos()], 1)
    torch.testing.assert_close(seen[0].double(), expected, rtol=0, atol=2e-4)  # float32 angles of some hundreds


def test_every_class_and_no_class_give_their_own_output() -> None:
    model = awake(classes=3)
    x, noise_label = (z[:1].repeat(4, *[1] * (z.ndim - 1)) for z in batch())
    out = model(x, noise_label, torch.arange(4))
    for one in range(4):
        for other in range(one):
            assert (out[one] - out[other]).abs().max() > 1e-3
    torch.testing.assert_close(model(x, noise_label)[3], out[3], rtol=0, atol=1e-6)


def test_permuting_the_batch_permutes_the_output() -> None:
    model = awake(classes=3)
    x, noise_label = batch()
    class_label = torch.tensor([0, 1, 2, 0])
    order = torch.tensor([2, 0, 3, 1])
    out = model(x, noise_label, class_label)
    permuted = model(x[order], noise_label[order], class_label[order])
    torch.testing.assert_close(permuted, out[order], rtol=0, atol=1e-5)


def test_attention_is_softmax_of_queries_and_keys_over_values() -> None:
    torch.manual_seed(0)
    attention = Attention(channels=8, norm=group_norm(2), heads=2)
    nn.init.normal_(attention.out.weight)
    x = torch.randn(3, 8, 2, 5)
    pixels = attention.norm(x).flatten(2).transpose(1, 2)  # (B, P, C)
    weights = attention.query_key_value.weight.flatten(1)  # (3C, C)
    projected = pixels @ weights.T + attention.query_key_value.bias  # (B, P, 3C)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        query, key, value = (part[:, :, head] for part in projected.chunk(3, dim=2))  # (B, P, 4) each
        heads.append((query @ key.transpose(1, 2) / 4**0.5).softmax(dim=2) @ value)  # (B, P, 4)
    mixed = torch.cat(heads, dim=2) @ attention.out.weight.flatten(1).T  # (B, P, C)
    expected = x + mixed.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


def operations(module: nn.Module, x: Tensor) -> list[str]:
    """The names of torch's operations that one evaluation calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x)
    return [event.name for event in profile.events()]


@pytest.mark.parametrize(
    ("dtype", "side", "fused"),
    [(torch.float32, 2, True), (torch.float32, 16, True), (torch.bfloat16, 8, False), (torch.bfloat16, 16, True)],
)
def test_attention_is_fused_where_that_is_faster(dtype: torch.dtype, side: int, fused: bool) -> None:
    attention = Attention(channels=8, norm=group_norm(2), heads=2).to(dtype)
    called = operations(attention, torch.randn(2, 8, side, side, dtype=dtype))
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in called) == fused


def test_the_network_has_derivatives_in_forward_mode() -> None:
    """A directional derivative, and the gradient of its square: what consistency models train on."""
    torch.manual_seed(0)
    model = small().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, direction = torch.randn(2, 2, 1, 8, 8, dtype=torch.float64)
    label = torch.tensor([10.0, 900.0], dtype=torch.float64)
    _, along = torch.func.jvp(lambda x: model(x, label), (x,), (direction,))
    step = 1e-6
    differences = (model(x + step * direction, label) - model(x - step * direction, label)) / (2 * step)
    torch.testing.assert_close(along, differences, rtol=1e-6, atol=1e-7)
    along.square().sum().backward()
    weight = model.middle[0].attention.query_key_value.weight
    slope = weight.grad[0, 0].item()

    def size(change: float) -> float:
        with torch.no_grad():
            weight[0, 0] += change
            size = torch.func.jvp(lambda x: model(x, label), (x,), (direction,))[1].square().sum().item()
            weight[0, 0] -= change
        return size

    assert slope == pytest.approx((size(step) - size(-step)) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(("attention", "count"), [([], 1), ([4], 4), ([8, 4], 7), ([5], 1)])
def test_attention_stands_at_the_asked_resolutions_and_in_the_middle(attention: list[int], count: int) -> None:
    model = small(attention=attention)
    assert sum(isinstance(block, Attention) for block in model.modules()) == count


@pytest.mark.parametrize("classes", [0, 3])
def test_gradients_reach_every_parameter(classes: int) -> None:
    model = awake(classes=classes)
    x, noise_label = batch()
    model(x, noise_label, torch.tensor([0, 1, 2, 3]) if classes else None).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_bfloat16_stays_near_float32() -> None:
    model = awake(classes=3)
    x, noise_label = batch(16)
    class_label = torch.arange(16) % 3
    exact = model(x, noise_label, class_label)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x, noise_label, class_label)
    assert rough.dtype == torch.bfloat16
    error = (rough.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.02  # bfloat16 keeps 8 bits: 0.004 a rounding, through a score of layers


def test_dropout_acts_in_training_only() -> None:
    model = awake(dropout=0.5)
    x, noise_label = batch()
    assert torch.equal(model(x, noise_label), model(x, noise_label))
    model.train()
    assert not torch.equal(model(x, noise_label), model(x, noise_label))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": 20}, "width must be a multiple of groups=8, got 20"),
        ({"width": 16, "heads": 3}, "width must be a multiple of heads=3, got 16"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"classes": -1}, r"classes must be at least 0 .*got -1"),
        ({"multipliers": []}, r"multipliers must be one or more numbers of at least 1, got \[\]"),
        ({"multipliers": [1, 0]}, r"multipliers must be one or more numbers of at least 1, got \[1, 0\]"),
        (
            {"resolution": 28, "multipliers": [1, 2, 2, 2]},
            "multipliers needs data.resolution divisible by 8, got 28",
        ),
        ({"head_width": 12}, "head_width must divide the 32 channels of a level with attention, got 12"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_numbers_that_make_no_network_are_named(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        small(**numbers)
    assert "\n" not in str(raised.value)


def test_a_class_label_without_classes_is_refused() -> None:
    x, noise_label = batch()
    with pytest.raises(ValueError, match="class_label needs a model with classes"):
        small()(x, noise_label, torch.zeros(4, dtype=torch.long))
