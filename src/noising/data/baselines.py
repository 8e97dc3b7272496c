"""Bits/dim without a model: baselines that a bound must beat before it shows any learning."""

import math

import torch
from torch import Tensor


def uniform_bits(levels: int) -> float:
    """log₂(levels), in bits/dim: the code length if every grey level is equally likely."""
    return math.log2(levels)


def histogram_bits(train: Tensor, test: Tensor, levels: int) -> float:
    """Cross-entropy of the test images under the training set's histogram of each pixel, in bits/dim.

    Pixels are taken as independent, each position and channel with its own histogram. It is smoothed by one
    pseudo-count spread evenly over the levels (Perks' prior, Dirichlet(1/levels)), so that levels which do not occur in
    training remain possible; with add-one smoothing the prior would weigh as much as 256 images.

    Args:
        train: training images, (N, C, H, W) uint8 with values 0..levels-1.
        test: test images, likewise.
        levels: number of grey levels.
    """
    counts = _histograms(train, levels)
    log_probability = torch.log2((counts + 1 / levels) / (len(train) + 1))  # (C·H·W, levels)
    return -float((_histograms(test, levels) * log_probability).sum()) / test.numel()


def _histograms(pixels: Tensor, levels: int) -> Tensor:
    """Counts of each level at each pixel: (C·H·W, levels) float64."""
    by_pixel = pixels.flatten(1).T.contiguous()  # (C·H·W, N)
    return torch.stack([torch.bincount(values, minlength=levels) for values in by_pixel]).double()
