"""Networks that turn images into features, and the statistics of a whole set's."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from noising.metrics.statistics import FeatureStatistics

__all__ = ["FeatureExtractor", "feature_statistics"]


class FeatureExtractor(nn.Module, ABC):
    """Grey levels (B, C, H, W) uint8 to features (B, dims) float32, a function of each image alone."""

    dims: int
    name: str

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor: ...

    @property
    def digest(self) -> str:
        """SHA-256 in hex of every weight's name, kind, shape and bytes: two distances compare only if it is equal."""
        sha = hashlib.sha256()
        for name, weight in sorted(self.state_dict().items()):
            sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            sha.update(weight.cpu().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


@torch.no_grad()
def feature_statistics(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> FeatureStatistics:
    """The statistics of all batches' features, extracted in evaluation mode where the extractor's weights are.

    batches: (B, C, H, W) uint8 each. Raises ValueError if a feature is not finite.
    """
    extractor.eval()
    device = next((weight.device for weight in extractor.state_dict().values()), torch.device("cpu"))
    statistics = FeatureStatistics(extractor.dims)
    for pixels in batches:
        statistics.update(extractor(pixels.to(device)))
    return statistics
