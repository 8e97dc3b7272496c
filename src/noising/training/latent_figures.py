"""The pictures of latents: what lies between two, what images come back from their own, and how nearly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from torch import Tensor

from noising.training.figures import image_grid, save_figure

__all__ = ["interpolation_rows", "reconstruction_error", "reconstruction_rows"]

_SHOWN = 16
"""Images side by side in the picture of reconstructions."""
_TILE, _LONGEST = 0.8, 60.0
"""Inches of an image, less where so many of them would be a longer picture than this."""
_NARROWEST = 5.5
"""Inches that a title needs."""
_GAP = 1


def interpolation_rows(file: Path, images: Tensor, names: Sequence[str], title: str) -> None:
    """Draw (pairs, columns, C, H, W) uint8, a pair a row: its two ends, framed, are the first and the last."""
    pairs, columns = images.shape[:2]
    figure, axes = _tiled(images, title)
    side = images.shape[-1] + _GAP
    for row in range(pairs):
        for column in (0, columns - 1):
            corner = (column * side + _GAP / 2, row * side + _GAP / 2)
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="tab:orange", linewidth=2))
    steps = range(columns)
    fractions = ["first end" if i == 0 else "other end" if i == columns - 1 else f"{i}/{columns - 1}" for i in steps]
    axes.set_xticks([side * (i + 0.5) for i in steps], fractions, fontsize=8)
    axes.set_yticks([side * (i + 0.5) for i in range(pairs)], names, fontsize=9)
    axes.set_xlabel("how far along the arc between the two latents")
    save_figure(figure, file)


def reconstruction_rows(
    file: Path, images: Tensor, drawn: Sequence[Tensor], steps: Sequence[int], rmse: Sequence[float], title: str
) -> None:
    """Draw images (B, C, H, W) uint8 above what came back of them, one (B, C, H, W) for each number of steps.

    rmse: of each, in 8-bit grey levels, over all images, of which the first are shown.
    """
    rows = [row[:_SHOWN] for row in (images, *drawn)]
    figure, axes = _tiled(rows, title)
    side = images.shape[-1] + _GAP
    names = [f"{count} steps\nRMSE {error:.1f}" for count, error in zip(steps, rmse, strict=True)]
    axes.set_yticks([side * (i + 0.5) for i in range(len(rows))], ["test images", *names], fontsize=9)
    axes.set_xticks([])
    axes.axhline(side + _GAP / 2, color="tab:orange", linewidth=2)
    save_figure(figure, file)


def reconstruction_error(file: Path, steps: Sequence[int], rmse: Tensor, grey_level: float, title: str) -> None:
    """Draw rmse (steps, B), in 8-bit grey levels, of each image and of all, against the number of steps.

    grey_level: by how much two neighbouring levels of the data differ.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    of_all = rmse.square().mean(dim=1).sqrt().tolist()
    for number, column in enumerate(rmse.T.tolist()):
        axes.plot(steps, column, color="0.75", linewidth=0.8, label=None if number else "each image")
    axes.plot(steps, of_all, marker="o", color="tab:blue", label="all images")
    middle = len(steps) // 2
    first_order = [of_all[middle] * steps[middle] / count for count in steps]
    axes.plot(steps, first_order, "--", color="tab:orange", label="first order: ∝ 1/steps")
    axes.axhline(grey_level, color="0.4", linestyle=":", label="one grey level of the data")
    axes.set(xscale="log", yscale="log", xlabel="steps of DDIM, as many each way")
    axes.set_ylabel("RMSE of the reconstruction  [8-bit grey levels]")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save_figure(figure, file)


def _tiled(rows: Sequence[Tensor] | Tensor, title: str) -> tuple[Figure, Axes]:
    """A figure of rows of images, each (columns, C, H, W), in units of their pixels."""
    count, columns, size = len(rows), len(rows[0]), rows[0].shape[-1]
    in_columns = [row[column] for column in range(columns) for row in rows]
    picture = image_grid(torch.stack(in_columns), gap=_GAP, enlarge=False, classes=count)
    tile = min(_TILE, _LONGEST / max(count, columns))
    figure = Figure(figsize=(max(_NARROWEST, 1.4 + tile * columns), 1.1 + tile * count), layout="constrained")
    axes = figure.subplots()
    side = size + _GAP
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, columns * side + _GAP, count * side + _GAP, 0))
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes
