"""Rows of images on a plot's axes, so that rows and columns can be named."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from noising.training.figures import image_grid

__all__ = ["GAP", "tiled"]

GAP = 1
"""Pixels between two images."""
_TILE, _LONGEST = 0.8, 60.0
"""Inches of an image, less where so many of them would be a longer picture than this."""
_NARROWEST = 5.5
"""Inches that a title needs."""


def tiled(rows: Sequence[Tensor] | Tensor, title: str) -> tuple[Figure, Axes]:
    """A figure of rows of images, each (columns, C, H, W) uint8, in units of their pixels."""
    count, columns, size = len(rows), len(rows[0]), rows[0].shape[-1]
    in_columns = [row[column] for column in range(columns) for row in rows]
    picture = image_grid(torch.stack(in_columns), gap=GAP, enlarge=False, classes=count)
    tile = min(_TILE, _LONGEST / max(count, columns))
    figure = Figure(figsize=(max(_NARROWEST, 1.4 + tile * columns), 1.1 + tile * count), layout="constrained")
    axes = figure.subplots()
    side = size + GAP
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, columns * side + GAP, count * side + GAP, 0))
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes
