"""What the tests of several commands need: small data sets of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers import write_images


def images(folder: Path, side: int, classes: int) -> list[str]:
    """The options of a small data set of that size and number of classes."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(side), np.arange(side))[:, :, None]
    for number in range(max(classes, 1)):
        colours = rng.integers(0, 256 // side, (12, 1, 1, 3))
        write_images(folder / "images" / f"{number}", (ramp * colours // 2).astype(np.uint8))
    labels = ["data.labels=true", "label_dropout=0.0"] if classes else []
    return ["data=image_folder", f"data.root={folder / 'images'}", f"data.resolution={side}", *labels]
