"""Images of 64x64 in the layouts of published sets, for the tests of those sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]


def draw(count: int, seed: int = 0, side: int = 64) -> Array:
    """Colour images of noise, (N, side, side, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_pngs(folder: Path, images: Array, first: int = 0) -> None:
    """One .png an image, named by its number from `first` on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{first + number:05}.png")


def in_planes(images: Array) -> Array:
    """The layout of Chrabaszcz et al. (2017): (N, 12288), the planes of red, green and blue after each other."""
    return np.stack([np.concatenate([image[:, :, channel].ravel() for channel in range(3)]) for image in images])
