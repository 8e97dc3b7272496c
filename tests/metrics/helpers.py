"""Features and their statistics, for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from noising.metrics.extractors import FeatureExtractor, extract
from noising.metrics.statistics import FeatureStatistics


class Pixels(torch.nn.Module):
    """The pixels themselves as features."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1).double() / 255


class Brightness(Metric):
    """The mean of all pixels of 8-bit images: a metric as a user would write it."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        self.total += images.double().sum()
        self.count += images.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


statistics_of = FeatureStatistics.from_features


def feature_statistics(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> FeatureStatistics:
    return FeatureStatistics.from_features(extract(extractor, batches))


def spread(pixels: Tensor, count: int) -> Tensor:
    """So many of the images, at equal distances."""
    return pixels[[i * len(pixels) // count for i in range(count)]]
