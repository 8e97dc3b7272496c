"""Networks that turn images into features, and the statistics of a whole set's."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from noising.metrics.statistics import FeatureStatistics

__all__ = ["FeatureExtractor", "extract", "feature_statistics", "three_channels"]


class FeatureExtractor(nn.Module, ABC):
    """8-bit images (B, C, H, W) uint8 to features (B, dims) float32, a function of each image alone."""

    dims: int
    name: str

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor: ...

    def class_logits(self, features: Tensor) -> Tensor | None:
        """(B, dims) -> (B, K), of the classes that it was trained to tell apart; None if it was not."""
        return None

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the name, and of every weight's name, kind, shape and bytes.

        Two distances compare only if it is equal.
        """
        sha = hashlib.sha256(f"{self.name} {self.dims}\n".encode())
        for name, weight in sorted(self.state_dict().items()):
            sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            sha.update(weight.cpu().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


@torch.no_grad()
def extract(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """(N, dims) float32 on the host, extracted in evaluation mode where the extractor's weights are.

    batches: (B, C, H, W) uint8 each. Raises ValueError if a feature is not finite.
    """
    extractor.eval()
    device = next((weight.device for weight in extractor.state_dict().values()), torch.device("cpu"))
    features = [extractor(pixels.to(device)).cpu() for pixels in batches]
    joined = torch.cat(features) if features else torch.zeros(0, extractor.dims)
    lost = int((~joined.isfinite()).any(1).sum())
    if lost:
        raise ValueError(f"{lost} of {len(joined)} images have features that are not finite")
    return joined


def feature_statistics(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> FeatureStatistics:
    """Mean and covariance of all batches' features; as `extract`, but without keeping them."""
    statistics = FeatureStatistics(extractor.dims)
    for pixels in batches:
        statistics.update(extract(extractor, [pixels]))
    return statistics


def three_channels(pixels: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W): grey is repeated. Raises ValueError for any other number."""
    if pixels.shape[1] not in (1, 3):
        raise ValueError(f"the extractor sees images of one channel or three, not of {pixels.shape[1]}")
    return pixels.expand(-1, 3, -1, -1)
