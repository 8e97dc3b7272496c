"""How the quality of samples is measured: in which features, on how many samples, against which real images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from noising.configuration import blaming
from noising.data.image_data import SPLITS, ImageData
from noising.metrics import FeatureExtractor
from noising.metrics.dinov2 import DINOv2
from noising.metrics.features import three_channels
from noising.metrics.inception import Inception
from noising.metrics.scores import inception_score
from noising.training.references import fitted_classifier

__all__ = ["ALL", "ClassifierDistance", "DINOv2Distance", "InceptionDistance", "Protocol"]

ALL = "all"
MOST = 10_000_000
"""Samples: the features of all lie in memory."""


class Protocol(ABC):
    """What of a metric is chosen before any sample is drawn.

    Args:
        n: samples of a repeat; None for as many as there are test images, at most 2,000.
        repeats: times n, each time other samples, for the standard error.
        split: of the real images: train, test or val.
        real: how many of it: None for n, "all" for all.
        flips: each real image mirrored as well.
        reference: statistics computed elsewhere take the place of the real images'; a file that `reference` wrote.
        neighbours: real images beside each of the samples most like one, in the picture.

    Raises:
        ValueError: one of them cannot be.
    """

    distance: ClassVar[str]
    """The Fréchet distance's name in summary.json, after the split."""
    kernel_distance: ClassVar[str]
    batch: ClassVar[int] = 500
    """Images whose features are extracted at once."""

    def __init__(
        self,
        n: int | None = None,
        repeats: int = 3,
        split: str = "train",
        real: int | str | None = None,
        flips: bool = False,
        reference: str | None = None,
        neighbours: int = 5,
    ) -> None:
        for name, value in (("n", n), ("repeats", repeats), ("neighbours", neighbours)):
            if value is not None and (isinstance(value, bool) or not 1 <= value <= MOST):
                raise ValueError(f"{name} must be a whole number from 1 to {MOST}, got {value}")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split}")
        if real is not None and real != ALL and (isinstance(real, str | bool) or real < 2):
            raise ValueError(f"real must be null (as many as n), all, or a number of images, got {real}")
        if reference is not None and not Path(reference).is_file():
            raise ValueError(f"reference={reference}: there is no such file")
        self.n = n
        self.repeats = repeats
        self.split = split
        self.real = real
        self.flips = flips
        self.reference = reference
        self.neighbours = neighbours

    def real_images(self, samples: int | None) -> int | None:
        """How many real images as many samples are held against; None for all there are."""
        return None if self.real == ALL else int(self.real or 0) or samples

    @abstractmethod
    def extractor(self, data: ImageData) -> FeatureExtractor:
        """The network, in evaluation mode, on the host. Raises ConfigError if it cannot be had."""

    def scores(self, logits: Tensor | None, asked: Tensor | None) -> dict[str, float]:
        """What else the extractor tells by its class logits (N, K) of images asked to show classes (N,)."""
        return {}


class ClassifierDistance(Protocol):
    """FD: the Fréchet distance in the features of a small classifier fitted to the data set's own labels."""

    distance, kernel_distance = "fd", "kd"

    def extractor(self, data: ImageData) -> FeatureExtractor:
        return fitted_classifier(data)

    def scores(self, logits: Tensor | None, asked: Tensor | None) -> dict[str, float]:
        if logits is None or asked is None:
            return {}
        return {"class_accuracy": float((logits.argmax(1).cpu() == asked.cpu()).double().mean())}


class InceptionDistance(Protocol):
    """FID, KID and the Inception score: the 2015 Inception network's. Heusel et al. (2017)."""

    distance, kernel_distance = "fid", "kid"
    batch = 50

    def __init__(
        self,
        n: int | None = None,
        repeats: int = 1,
        split: str = "train",
        real: int | str | None = None,
        flips: bool = False,
        reference: str | None = None,
        neighbours: int = 5,
        inception_weights: str | None = None,
        layer: int = 2048,
    ) -> None:
        """inception_weights: a local file, None to download them; layer: its width, 64, 192, 768 or 2048."""
        super().__init__(n, repeats, split, real, flips, reference, neighbours)
        self.inception_weights = inception_weights
        self.layer = layer

    def extractor(self, data: ImageData) -> FeatureExtractor:
        with blaming("metrics"):
            three_channels(data.train.pixels[:1])
            return Inception(self.inception_weights, self.layer)

    def scores(self, logits: Tensor | None, asked: Tensor | None) -> dict[str, float]:
        return {} if logits is None else {"inception_score": inception_score(logits)}


class DINOv2Distance(Protocol):
    """FD-DINOv2: the Fréchet distance in the features of DINOv2 ViT-L/14. Stein et al. (2023)."""

    distance, kernel_distance = "fd_dinov2", "kd_dinov2"
    batch = 32

    def __init__(
        self,
        n: int | None = None,
        repeats: int = 1,
        split: str = "train",
        real: int | str | None = None,
        flips: bool = False,
        reference: str | None = None,
        neighbours: int = 5,
        dinov2_weights: str | None = None,
        dinov2_repo: str | None = None,
    ) -> None:
        """dinov2_weights, dinov2_repo: a local file and a local clone, None to download them."""
        super().__init__(n, repeats, split, real, flips, reference, neighbours)
        self.dinov2_weights = dinov2_weights
        self.dinov2_repo = dinov2_repo

    def extractor(self, data: ImageData) -> FeatureExtractor:
        with blaming("metrics"):
            three_channels(data.train.pixels[:1])
            return DINOv2(self.dinov2_weights, self.dinov2_repo)
