"""Augmentation of training images: random transformations, and the labels by which the network sees which they were.

In sampling and in evaluation it sees the labels of an image that was not transformed, zeros: it learns from augmented
images, and draws none.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from noising.errors import require
from noising.randomness import Streams

WARP = "antialiased bicubic to twice the resolution, bilinear there, bicubic back; reflected at the edges"
"""The name of the geometric transformations' interpolation, for cards: with another, images are others."""


class Augmentation(ABC):
    """Random transformations of images, each described by a number of labels: the attribute `labels`."""

    labels: int

    @abstractmethod
    def __call__(self, images: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        """The transformed images, (B, C, H, W) on the images' device, and their labels, (B, labels) float32.

        images: (B, C, H, W) in [-1, 1]; streams: one for each, on their device, and the only source of randomness. An
        image that is not transformed is returned to the last bit, with labels of 0.
        """

    @property
    def card(self) -> dict[str, Any]:
        """Everything that the transformations depend on, for the cards of the trained model's numbers."""
        return {"name": type(self).__qualname__}


class GeometricAugmentation(Augmentation):
    """Flips, scaling, rotation, stretching and translation, each of some images: the augmentation of EDM.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), appendix F.2,
    https://arxiv.org/abs/2206.00364. With N for standard normal numbers, the transformations, in this order, and the
    nine labels are:

    * x-flip, left to right, with probability 1/2: 1, or 0 without it;
    * y-flip, upside down: 1 or 0;
    * scaling by 2^(0.2 N): N;
    * rotation by an angle a, anticlockwise, uniform over the circle: cos a - 1 and sin a;
    * stretching by 2^(0.2 N) along a direction at an angle r, anticlockwise from the right, and by 2^(-0.2 N) across
      it: N cos r and N sin r; r is uniform over the circle with probability 1/2, else 0. As in the authors' code,
      the labels do not tell stretching from shrinking along the opposite direction;
    * translation by N / 8 of the width to the right and by another N / 8 of the height down: both N.

    The flips move pixels. The others are one affine transformation about the centre, in the interpolation that `WARP`
    names. The authors' code filters by a wavelet (sym6) instead.
    """

    labels = 9

    def __init__(self, probability: float = 0.12) -> None:
        """probability: of each of scaling, rotation, stretching and translation; half of it is that of the y-flip.

        0.12 is that of CIFAR-10, 0.15 that of FFHQ and AFHQ. Raises ValueError unless it is in (0, 1].
        """
        require(0 < probability <= 1, f"probability must lie above 0 and be at most 1, got {probability}")
        self.probability = probability

    @property
    def card(self) -> dict[str, Any]:
        return {**super().card, "probability": self.probability, "warp": WARP}

    def __call__(self, images: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        transformations = self.draw(streams)
        return transformations.of(images), transformations.labels

    def draw(self, streams: Streams) -> "Transformations":
        """A random transformation for each stream."""
        uniform = streams.uniform((9,)).unbind(1)
        scale, stretch, right, down = streams.normal((4,)).unbind(1)
        applied = [number < self.probability for number in uniform[:4]]
        angle, direction = (math.pi * (2 * number - 1) for number in uniform[4:6])
        return Transformations(
            x_flip=(uniform[7] < 0.5).float(),
            y_flip=(uniform[8] < self.probability / 2).float(),
            scale=scale * applied[0],
            angle=angle * applied[1],
            stretch=stretch * applied[2],
            direction=direction * (uniform[6] < 0.5),
            right=right * applied[3],
            down=down * applied[3],
        )


class Transformations(NamedTuple):
    """Transformations of `GeometricAugmentation`: its numbers N and angles in radians, each (B,) float32."""

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    direction: Tensor
    right: Tensor
    down: Tensor

    @property
    def labels(self) -> Tensor:
        """The nine labels: (B, 9) float32."""
        return torch.stack(
            [
                *(self.x_flip, self.y_flip, self.scale, self.angle.cos() - 1, self.angle.sin()),
                *(self.stretch * self.direction.cos(), self.stretch * self.direction.sin(), self.right, self.down),
            ],
            1,
        )

    def of(self, images: Tensor) -> Tensor:
        """The transformed images, (B, C, H, W); those without a transformation are the given ones to the last bit."""
        images = torch.where(_by_image(self.x_flip) > 0, images.flip(3), images)
        images = torch.where(_by_image(self.y_flip) > 0, images.flip(2), images)
        warps = torch.stack([self.scale, self.angle, self.stretch, self.right, self.down]).any(0)  # (B,)
        return torch.where(_by_image(warps), self._warped(images), images)

    def _warped(self, images: Tensor) -> Tensor:
        """The images under all but the flips: each point is read where the inverse transformation takes it."""
        height, width = images.shape[2:]
        scale, angle, stretch, direction, right, down = (number[:, None, None] for number in self[2:])
        # in pixels from the centre, x to the right and y down, where a positive angle turns clockwise
        x = _half_pixels(width, images.device) - width / 8 * right  # (B, 1, 2 W)
        y = _half_pixels(height, images.device)[:, None] - height / 8 * down  # (B, 2 H, 1)
        x, y = _turned(x, y, direction)  # (B, 2 H, 2 W) each
        x, y = _turned(x * torch.exp2(-0.2 * stretch), y * torch.exp2(0.2 * stretch), angle - direction)
        shrunk = torch.exp2(-0.2 * scale)
        places = torch.stack([x * shrunk * (2 / width), y * shrunk * (2 / height)], -1)  # (B, 2 H, 2 W, 2), in [-1, 1]
        fine = F.interpolate(images, scale_factor=2, mode="bicubic", antialias=True)  # (B, C, 2 H, 2 W)
        warped = F.grid_sample(fine, places, "bilinear", "reflection", align_corners=False)  # (B, C, 2 H, 2 W)
        return F.interpolate(warped, (height, width), mode="bicubic", antialias=True)


def _by_image(numbers: Tensor) -> Tensor:
    """Numbers (B,) as (B, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _half_pixels(size: int, device: torch.device) -> Tensor:
    """The points of a side at twice the resolution, from its centre and in pixels: (2 size,)."""
    return (torch.arange(2 * size, device=device) + 0.5) / 2 - size / 2


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The points (x, y) turned about the origin, from the first axis to the second."""
    cosine, sine = angle.cos(), angle.sin()
    return x * cosine - y * sine, x * sine + y * cosine
