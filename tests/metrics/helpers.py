"""Features and their statistics, for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from noising.metrics.extractors import FeatureExtractor, extract
from noising.metrics.statistics import FeatureStatistics


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


statistics_of = FeatureStatistics.from_features


def feature_statistics(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> FeatureStatistics:
    return FeatureStatistics.from_features(extract(extractor, batches))


def spread(pixels: Tensor, count: int) -> Tensor:
    """So many of the images, at equal distances."""
    return pixels[[i * len(pixels) // count for i in range(count)]]
