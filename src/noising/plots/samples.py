"""Samples on their way out of noise, and beside the training images nearest to them."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from noising.diffusion.drawing import frames
from noising.plots.grids import GAP, save_figure, show_tiles, tile_centres, tiled

_COLUMNS, _ROWS = 10, 4


def path_strip(file: Path, path: Tensor, times: Sequence[float], log_snrs: Sequence[float]) -> None:
    """Draw (frames, 2, B, C, H, W) uint8, x_t above x̂, a frame a column; times, log_snrs: t and λ of each frame."""
    chosen = frames(len(path), _COLUMNS)
    rows = min(_ROWS, path.shape[2])
    figure = Figure(figsize=(1.0 + 1.1 * len(chosen), 0.8 + 2.2 * rows), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, which, name in ((upper, 0, "$x_t$"), (lower, 1, "$\\hat x$ predicted\nby that step")):
        show_tiles(axes, path[chosen, which, :rows].transpose(0, 1))
        axes.set_yticks([])
        axes.set_ylabel(name, fontsize=13)
    short = ["∞" if math.isinf(value) else f"{round(value, 1) + 0.0:.1f}" for value in log_snrs]  # no −0.0
    lower.set_xticks(tile_centres(len(chosen), path), [f"t = {times[i]:.2g}\nλ = {short[i]}" for i in chosen])
    lower.set_xlabel("after the step to")
    save_figure(figure, file)


def neighbour_rows(file: Path, samples: Tensor, neighbours: Tensor, indices: Tensor, nearness: Tensor) -> None:
    """Draw samples (rows, C, H, W) uint8, each beside its nearest training images (rows, k, C, H, W), nearest first.

    indices: the samples' numbers (rows,); nearness: distance to the nearest over that one's to its own nearest.
    """
    title = "the samples most like a training image\n(ratio below 1: nearer to it than any other training image)"
    figure, axes = tiled(torch.cat([samples[:, None], neighbours], dim=1), title)
    columns = 1 + neighbours.shape[1]
    words = ["sample", "nearest", *(f"{place}." for place in range(2, columns))]
    names = [f"no. {index}\n{ratio:.2f}" for index, ratio in zip(indices.tolist(), nearness, strict=True)]
    axes.set_xticks(tile_centres(columns, samples), words, fontsize=8)
    axes.set_yticks(tile_centres(len(samples), samples), names, fontsize=8)
    axes.axvline(samples.shape[-1] + 1.5 * GAP, color="tab:orange", linewidth=2)
    axes.set_xlabel("training images nearest to it in feature space")
    save_figure(figure, file)
