"""Features and their statistics, for the tests of what is computed from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from noising.metrics.statistics import FeatureStatistics


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def statistics_of(features: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics


def spread(pixels: Tensor, count: int) -> Tensor:
    """So many of the images, at equal distances."""
    return pixels[[i * len(pixels) // count for i in range(count)]]
