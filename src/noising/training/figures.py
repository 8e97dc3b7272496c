"""The pictures a run leaves: grids of images, the reverse process in motion, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = [
    "Pixels",
    "image_grid",
    "learning_curves",
    "sample_grid",
    "save_animation",
    "save_figure",
    "save_png",
    "side_by_side",
]

Pixels = NDArray[np.uint8]

GRID_SIDE = 512
"""Grids are enlarged, by a whole factor, to about this many pixels a side: 8x8 digits are to be seen too."""


def image_grid(images: Tensor, gap: int | None = None, enlarge: bool = True, classes: int = 0) -> Pixels:
    """(B, C, H, W) uint8 in 0..255 to one picture (H', W', 3) or (H', W'), a near square of images with a gap.

    classes: with some, one a row, image i standing in row i mod classes.
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
    """A grid of the first images, at most so many; where image i is of class i mod classes, one class a row."""
    if not 0 < classes <= min(most, len(images)):
        return image_grid(images[:most])
    return image_grid(images[: min(most, len(images)) // classes * classes], classes=classes)


def side_by_side(left: Tensor, right: Tensor) -> Pixels:
    """Two grids of as many images (B, C, H, W) uint8, with a white bar between."""
    grids = [image_grid(images) for images in (left, right)]
    bar = np.full_like(grids[0][:, : max(8, grids[0].shape[1] // 32)], 255)
    return np.concatenate([grids[0], bar, grids[1]], axis=1)


def save_png(path: Path, picture: Pixels) -> None:
    """Write a picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def save_animation(path: Path, pictures: list[Pixels], seconds: float = 4.0) -> None:
    """Write pictures as an endless GIF that rests on the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(picture) for picture in pictures]
    durations = [int(1000 * seconds / len(pictures))] * len(others) + [1500]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


FEW = 5
"""Points of which a thin line shows too little."""


def learning_curves(
    path: Path,
    rows: Sequence[Mapping[str, str]],
    baselines: Mapping[str, float],
    distance: str | None = None,
    yardstick: float | None = None,
) -> None:
    """Plot the loss by quartile of t, and the validation bound with its baselines (bits/dim), by optimizer step.

    rows: those of metrics.csv, by column; distance: the column of a Fréchet distance, drawn as well, with that of real
    images.
    """

    def curve(column: str) -> tuple[list[int], list[float]]:
        logged = [row for row in rows if row.get(column)]
        return [int(row["step"]) for row in logged], [float(row[column]) for row in logged]

    panels = 2 if distance is None else 3
    figure = Figure(figsize=(5 * panels, 4.2), layout="constrained")
    loss, bound, *others = figure.subplots(1, panels)
    for quarter in range(1, 5):
        label = f"t in ({(quarter - 1) / 4:g}, {quarter / 4:g}]"
        steps, losses = curve(f"train/loss_q{quarter}")
        loss.plot(steps, losses, linewidth=0.8, alpha=0.9, label=label, marker="o" if len(steps) < FEW else "")
    loss.set(yscale="log", xlabel="optimizer step", ylabel="training loss")
    bound.plot(*curve("val/bound"), marker="o", color="tab:blue", label="validation, EMA weights")
    for (name, bits), style in zip(baselines.items(), ("--", ":"), strict=False):
        bound.axhline(bits, color="0.4", linestyle=style, label=name)
    bound.set(xlabel="optimizer step", ylabel="bound  [bits/dim]")
    for quality in others:
        quality.plot(*curve(str(distance)), marker="o", color="tab:blue", label="samples, EMA weights")
        if yardstick is not None:
            quality.axhline(yardstick, color="0.4", linestyle="--", label="real test images, at the end's count")
        quality.set(yscale="log", xlabel="optimizer step", ylabel="Fréchet distance to training images")
        quality.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        quality.yaxis.set_major_formatter("{x:g}")
        quality.minorticks_off()
    for axes in (loss, bound, *others):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)  # above all curves
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a plot, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
