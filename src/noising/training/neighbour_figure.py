"""The picture of memorization: the samples most like a training image, and the training images nearest to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from noising.training.figures import save_figure
from noising.training.tiles import GAP, tiled

__all__ = ["neighbour_rows"]


def neighbour_rows(file: Path, samples: Tensor, neighbours: Tensor, names: Sequence[str], title: str) -> None:
    """Draw samples (rows, C, H, W) uint8, each beside its neighbours (rows, k, C, H, W), the nearest first."""
    figure, axes = tiled(torch.cat([samples[:, None], neighbours], dim=1), title)
    side = samples.shape[-1] + GAP
    columns = 1 + neighbours.shape[1]
    words = ["sample", "nearest", *(f"{place}." for place in range(2, columns))]
    axes.set_xticks([side * (i + 0.5) for i in range(columns)], words, fontsize=8)
    axes.set_yticks([side * (i + 0.5) for i in range(len(samples))], names, fontsize=8)
    axes.axvline(side + GAP / 2, color="tab:orange", linewidth=2)
    axes.set_xlabel("training images nearest to it in feature space")
    save_figure(figure, file)
