"""The augmentation of EDM against transformations worked out in float64, its labels, and how often each is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from noising.data.augmentation import GeometricAugmentation, Transformations
from noising.randomness import Streams

SIDE = 48
MANY = 10_000
Warp = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def transformation(**numbers: float) -> Transformations:
    """One transformation, of the given numbers and no others."""
    return Transformations(**{name: torch.tensor([numbers.get(name, 0.0)]) for name in Transformations._fields})


def hill(x: Tensor, y: Tensor) -> Tensor:
    """A smooth hill that is no mirror image of itself; x to the right and y up, in pixels from the centre."""
    x, y = x - 3, y - 2
    return torch.exp(-(x**2 / 60 + y**2 / 25 + x * y / 60))


def places(warp: Warp = lambda x, y: (x, y)) -> tuple[Tensor, Tensor]:
    """x and y where a warp takes each pixel, (SIDE, SIDE) float64."""
    points = torch.arange(SIDE, dtype=torch.float64) + 0.5 - SIDE / 2
    return warp(points.expand(SIDE, SIDE), -points[:, None].expand(SIDE, SIDE))


def scaled(number: float) -> Warp:
    return lambda x, y: (x / 2 ** (0.2 * number), y / 2 ** (0.2 * number))


def turned(angle: float) -> Warp:
    """From a point of the image turned anticlockwise to that of the image itself."""
    c, s = math.cos(angle), math.sin(angle)
    return lambda x, y: (c * x + s * y, -s * x + c * y)


def stretched(number: float, direction: float) -> Warp:
    """The parts along and across the direction are divided by what each is multiplied by."""
    c, s, factor = math.cos(direction), math.sin(direction), 2 ** (0.2 * number)

    def warp(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        along, across = (c * x + s * y) / factor, (-s * x + c * y) * factor
        return c * along - s * across, s * along + c * across

    return warp


def moved(right: float, down: float) -> Warp:
    return lambda x, y: (x - right * SIDE / 8, y + down * SIDE / 8)


def one_after_another(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The inverses in reverse order: the image was scaled first, and moved last."""
    for warp in (moved(0.4, -0.7), stretched(-1.3, 0.6), turned(2.0), scaled(0.8)):
        x, y = warp(x, y)
    return x, y


@pytest.mark.parametrize(
    ("numbers", "warp", "labels"),
    [
        ({"scale": 1.3}, scaled(1.3), {2: 1.3}),
        ({"scale": -1.3}, scaled(-1.3), {2: -1.3}),
        ({"angle": 0.7}, turned(0.7), {3: math.cos(0.7) - 1, 4: math.sin(0.7)}),
        ({"angle": -2.5}, turned(-2.5), {3: math.cos(2.5) - 1, 4: -math.sin(2.5)}),
        ({"stretch": 1.5}, stretched(1.5, 0), {5: 1.5}),
        ({"stretch": 1.5, "direction": 1.1}, stretched(1.5, 1.1), {5: 1.5 * math.cos(1.1), 6: 1.5 * math.sin(1.1)}),
        ({"stretch": -2.0, "direction": -2}, stretched(-2, -2), {5: -2 * math.cos(2), 6: 2 * math.sin(2)}),
        ({"right": 1.2}, moved(1.2, 0), {7: 1.2}),
        ({"down": -0.8}, moved(0, -0.8), {8: -0.8}),
        (
            {"scale": 0.8, "angle": 2.0, "stretch": -1.3, "direction": 0.6, "right": 0.4, "down": -0.7},
            one_after_another,
            {2: 0.8, 3: math.cos(2) - 1, 4: math.sin(2), 5: -1.3 * math.cos(0.6), 6: -1.3 * math.sin(0.6)}
            | {7: 0.4, 8: -0.7},
        ),
    ],
)
def test_an_image_is_warped_as_its_labels_say(numbers: dict[str, float], warp: Warp, labels: dict[int, float]) -> None:
    one = transformation(**numbers)
    expected = torch.tensor([[labels.get(place, 0.0) for place in range(9)]])
    torch.testing.assert_close(one.labels, expected)
    before, after = hill(*places()), hill(*places(warp))
    found = one.of(before.float()[None, None])[0, 0].double()
    inside = torch.stack([place.abs() < SIDE / 2 - 3 for place in places(warp)]).all(0)  # what is not reflected
    # the hill's second derivatives are at most 0.08: bilinear, at half a pixel, misses by 0.0025 of them at each axis
    assert (found - after)[inside].abs().max() < 0.006
    assert (before - after)[inside].abs().max() > 0.2


def test_what_lies_beyond_the_edges_is_mirrored() -> None:
    image = hill(*places()).float()[None, None]
    found = transformation(right=3.0).of(image)  # by 18 pixels
    torch.testing.assert_close(found[..., 18:], image[..., :-18], atol=0.006, rtol=0)
    torch.testing.assert_close(found[..., :18], image[..., :18].flip(3), atol=0.006, rtol=0)
    turned_fourfold = transformation(angle=math.pi / 2).of(image)
    torch.testing.assert_close(turned_fourfold, image.rot90(1, (2, 3)), atol=0.006, rtol=0)


def test_a_side_is_its_own_measure() -> None:
    """An image that is not square is moved by an eighth of its width, and of its height."""
    images = torch.zeros(1, 2, 16, 32)
    images[0, 1, 5, 7] = 1
    images = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    found = transformation(right=1.0, down=-1.0).of(images)
    torch.testing.assert_close(found[..., 2:10, 8:20], images[..., 4:12, 4:16], atol=0.03, rtol=0)
    assert not found[0, 0].any()


def test_flips_are_exact_and_come_first() -> None:
    images = torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    for numbers, flipped, label in (
        ({"x_flip": 1.0}, images.flip(3), [1, 0]),
        ({"y_flip": 1.0}, images.flip(2), [0, 1]),
        ({"x_flip": 1.0, "y_flip": 1.0}, images.flip(2, 3), [1, 1]),
    ):
        assert torch.equal(transformation(**numbers).of(images), flipped)
        assert transformation(**numbers).labels.tolist() == [[*label, *[0] * 7]]
        both = transformation(**numbers, angle=0.5, right=0.3)
        assert torch.equal(both.of(images), transformation(angle=0.5, right=0.3).of(flipped))


@pytest.mark.parametrize("probability", [0.12, 0.5])
def test_each_is_drawn_as_often_as_it_should_be(probability: float) -> None:
    drawn = GeometricAugmentation(probability).draw(Streams(0, "augmentation", range(MANY)))
    expected = dict.fromkeys(("scale", "angle", "stretch", "right", "down"), probability)
    expected |= {"x_flip": 0.5, "y_flip": probability / 2, "direction": 0.5}
    for name, share in expected.items():
        found = float((getattr(drawn, name) != 0).float().mean())
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / MANY), name
    assert torch.equal(drawn.right != 0, drawn.down != 0)
    for name in ("scale", "stretch", "right", "down"):
        applied = getattr(drawn, name)[getattr(drawn, name) != 0].double()
        assert abs(float(applied.mean())) < 4 / math.sqrt(len(applied)), name
        assert abs(float(applied.square().mean()) - 1) < 4 * math.sqrt(2 / len(applied)), name
    for name in ("angle", "direction"):
        applied = getattr(drawn, name)[getattr(drawn, name) != 0].double()
        assert abs(float(applied.mean())) < 4 * math.pi / math.sqrt(3 * len(applied)), name
        assert math.pi * 0.98 < float(applied.abs().max()) <= math.pi, name
    # what is applied to an image says nothing of what else is
    several = torch.stack([drawn.x_flip, drawn.y_flip, drawn.scale, drawn.angle, drawn.stretch, drawn.right]) != 0
    correlations = torch.corrcoef(several.double()) - torch.eye(6)
    assert correlations.abs().max() < 4 / math.sqrt(MANY)


def test_an_image_of_which_nothing_is_said_is_as_it_was() -> None:
    images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = images.clone()
    found, labels = GeometricAugmentation()(images, Streams(0, "augmentation", range(200)))
    assert (found.shape, found.dtype) == (images.shape, torch.float32)
    assert (labels.shape, labels.dtype) == ((200, 9), torch.float32)
    same = (found == images).flatten(1).all(1)
    assert torch.equal(same, ~labels.any(1))
    assert 30 < int(same.sum()) < 100
    only_flipped = ~labels[:, 1:].any(1) & (labels[:, 0] == 1)
    assert only_flipped.any()
    assert torch.equal(found[only_flipped], images.flip(3)[only_flipped])
    assert torch.equal(images, before)


def test_an_image_is_augmented_by_its_place_in_the_global_batch() -> None:
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    augment = GeometricAugmentation(0.5)
    whole, labels = augment(images, Streams(3, "augmentation", range(64), "cpu", 7))
    for size in (1, 7, 16, 32):
        parts = [
            augment(
                images[start : start + size], Streams(3, "augmentation", range(start, min(start + size, 64)), "cpu", 7)
            )
            for start in range(0, 64, size)
        ]
        torch.testing.assert_close(torch.cat([part for part, _ in parts]), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat([part for _, part in parts]), labels, atol=1e-6, rtol=1e-6)
    _, others = augment(images, Streams(3, "augmentation", range(64), "cpu", 8))
    assert not torch.isclose(others[:, 2:], labels[:, 2:]).all(1)[labels[:, 2:].any(1)].any()


def test_the_card_names_the_warp() -> None:
    card = GeometricAugmentation(0.15).card
    assert (card["name"], card["probability"]) == ("GeometricAugmentation", 0.15)
    assert "bilinear" in card["warp"]


@pytest.mark.parametrize("probability", [0, -0.1, 1.1, math.nan])
def test_a_probability_is_one(probability: float) -> None:
    with pytest.raises(ValueError, match=r"^probability must lie above 0 and be at most 1, got"):
        GeometricAugmentation(probability)
