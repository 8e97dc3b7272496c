"""The picture of how images come out of noise: x_t and x̂ side by side, along t and λ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from noising.plots.grids import GAP, image_grid, save_figure, tiled

__all__ = ["neighbour_rows", "path_strip"]


COLUMNS, ROWS = 10, 4


def path_strip(file: Path, path: Tensor, times: Sequence[float], log_snrs: Sequence[float]) -> None:
    """Draw (frames, 2, B, C, H, W) uint8, x_t and x̂; times, log_snrs: those of x_t, one a frame."""
    count = min(COLUMNS, len(path))
    chosen = [(i + 1) * len(path) // count - 1 for i in range(count)]
    rows = min(ROWS, path.shape[2])
    figure = Figure(figsize=(1.0 + 1.1 * count, 0.8 + 2.2 * rows), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, which, name in ((upper, 0, "$x_t$"), (lower, 1, "$\\hat x$, as that\nstep saw it")):
        _tiles(axes, path[chosen, which, :rows])
        axes.set_ylabel(name, fontsize=13)
    labels = [f"t = {times[i]:.2g}\nλ = {_short(log_snrs[i])}" for i in chosen]
    side = path.shape[-1] + 1
    lower.set_xticks([side * (i + 0.5) for i in range(count)], labels)
    lower.set_xlabel("after the step to")
    save_figure(figure, file)


def _tiles(axes: Axes, frames: Tensor) -> None:
    """(columns, rows, C, H, W): a column a frame."""
    columns, rows = frames.shape[:2]
    tiled = frames.flatten(0, 1)
    picture = image_grid(tiled, gap=1, enlarge=False, classes=rows)
    side = frames.shape[-1] + 1
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, columns * side + 1, rows * side + 1, 0))
    axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(log_snr: float) -> str:
    return "∞" if math.isinf(log_snr) else f"{round(log_snr, 1) + 0.0:.1f}"  # no −0.0


def neighbour_rows(file: Path, samples: Tensor, neighbours: Tensor, indices: Tensor, nearness: Tensor) -> None:
    """Draw samples (rows, C, H, W) uint8, each beside its nearest training images (rows, k, C, H, W), nearest first.

    indices: the samples' numbers (rows,); nearness: distance to the nearest over that one's to its own nearest.
    """
    title = "the samples most like a training image\n(below 1: nearer to it than any other training image is)"
    figure, axes = tiled(torch.cat([samples[:, None], neighbours], dim=1), title)
    side = samples.shape[-1] + GAP
    columns = 1 + neighbours.shape[1]
    words = ["sample", "nearest", *(f"{place}." for place in range(2, columns))]
    names = [f"no. {index}\n{ratio:.2f}" for index, ratio in zip(indices.tolist(), nearness, strict=True)]
    axes.set_xticks([side * (i + 0.5) for i in range(columns)], words, fontsize=8)
    axes.set_yticks([side * (i + 0.5) for i in range(len(samples))], names, fontsize=8)
    axes.axvline(side + GAP / 2, color="tab:orange", linewidth=2)
    axes.set_xlabel("training images nearest to it in feature space")
    save_figure(figure, file)
