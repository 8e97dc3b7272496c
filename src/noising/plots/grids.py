"""Grids of images: as pixels, in motion, and as axes of a figure; and how a picture is saved."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noising.runs.folder import replacing

Pixels = NDArray[np.uint8]
GRID_SIDE = 512
"""Pixels a side that grids are enlarged to, by a whole factor: 8x8 digits are small."""


def image_grid(images: Tensor, gap: int | None = None, enlarge: bool = True, classes: int = 0) -> Pixels:
    """Lay out (B, C, H, W) uint8 as one picture (H', W', 3) or (H', W'), nearly square, with gaps between.

    classes: number of rows, if it is not 0; image i then stands in row i mod classes.
    """
    count, channels, height, width = images.shape
    columns = math.ceil(count / classes) if classes else math.ceil(math.sqrt(count))
    rows = classes or math.ceil(count / columns)
    gap = max(1, height // 16) if gap is None else gap
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 128, np.uint8)
    for place, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        row, column = divmod(place, classes)[::-1] if classes else divmod(place, columns)
        top, left = gap + (height + gap) * row, gap + (width + gap) * column
        canvas[top : top + height, left : left + width] = image
    factor = max(1, round(GRID_SIDE / max(canvas.shape[:2]))) if enlarge else 1
    canvas = canvas.repeat(factor, axis=0).repeat(factor, axis=1)
    return canvas[..., 0] if channels == 1 else canvas


def sample_grid(images: Tensor, classes: int = 0, most: int = 64) -> Pixels:
    """Lay out the first images, at most `most`; one class a row where image i is of class i mod classes."""
    images = images[:most]
    if not 0 < classes <= len(images):
        return image_grid(images)
    return image_grid(images[: len(images) // classes * classes], classes=classes)


def side_by_side(left: Tensor, right: Tensor) -> Pixels:
    """Lay out two grids of equally many images (B, C, H, W) uint8, with a white bar between."""
    grids = [image_grid(images) for images in (left, right)]
    bar = np.full_like(grids[0][:, : max(8, grids[0].shape[1] // 32)], 255)
    return np.concatenate([grids[0], bar, grids[1]], axis=1)


def save_png(path: Path, picture: Pixels) -> None:
    """Write a picture, making its folder."""
    with replacing(path, sync=False) as file:
        Image.fromarray(picture).save(file, "PNG")


def save_animation(path: Path, pictures: list[Pixels]) -> None:
    """Write pictures as an endless GIF of four seconds that rests on the last."""
    first, *others = [Image.fromarray(picture) for picture in pictures]
    durations = [int(4000 / len(pictures))] * len(others) + [1500]
    with replacing(path, sync=False) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0)


def label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis at several places of every decade, 20 and not 2 · 10¹."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def save_figure(figure: Figure, path: Path, dpi: int = 140) -> None:
    """Write a plot, making its folder."""
    with replacing(path, sync=False) as file:
        figure.savefig(file, dpi=dpi, format=path.suffix[1:])


GAP = 1  # pixels between two images
_TILE, _LONGEST, _NARROWEST = 0.8, 60.0, 5.5
"""Inches of an image, of the longest picture, where more are smaller, and of the narrowest, for its title."""


def tiled(rows: Sequence[Tensor] | Tensor, title: str) -> tuple[Figure, Axes]:
    """Make a figure of rows of images, each (columns, C, H, W) uint8, in units of their pixels."""
    count, columns = len(rows), len(rows[0])
    tile = min(_TILE, _LONGEST / max(count, columns))
    figure = Figure(figsize=(max(_NARROWEST, 1.4 + tile * columns), 1.1 + tile * count), layout="constrained")
    axes = figure.subplots()
    show_tiles(axes, rows)
    axes.set_title(title, fontsize=10)
    return figure, axes


def show_tiles(axes: Axes, rows: Sequence[Tensor] | Tensor) -> None:
    """Show rows of images, each (columns, C, H, W) uint8, in units of their pixels."""
    count, columns, side = len(rows), len(rows[0]), rows[0].shape[-1] + GAP
    images = torch.stack([row[column] for column in range(columns) for row in rows])
    picture = image_grid(images, gap=GAP, enlarge=False, classes=count)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, columns * side + GAP, count * side + GAP, 0))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def tile_centres(count: int, images: Tensor) -> list[float]:
    """Middles of `count` tiles of such images, in one row or column, for ticks."""
    return [(images.shape[-1] + GAP) * (i + 0.5) for i in range(count)]
