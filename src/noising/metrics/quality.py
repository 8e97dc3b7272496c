"""Metrics of sample quality: each names features, sample count and real images, and declares its numbers.

Every metric here is a Fréchet distance in its own features, with the kernel distance, precision, recall, density,
coverage and the share of memorized samples in the same features beside it. The bias of a Fréchet distance goes as 1/n,
so two compare only at equal n. `ImageMetric` is any other metric that torchmetrics knows or a user wrote.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torchmetrics import Metric

from noising.data.image_data import SPLITS, ImageData
from noising.errors import config_errors
from noising.metrics.classifier import Classifier
from noising.metrics.extractors import DINOv2, FeatureExtractor, Inception, three_channels
from noising.metrics.reference_features import fitted_classifier, require_classes
from noising.metrics.scores import SCORES, inception_score
from noising.runs.declarations import Declaration

MAX_SAMPLES = 10_000_000  # upper limit of the samples of a repeat: the features of all lie in memory


@dataclass(eq=False)
class ImageMetric:
    """Any torchmetrics.Metric whose `update` takes images, and, if it has a parameter `real`, the real ones as well.

    It is given 8-bit images (B, 3, H, W) uint8, grey ones repeated to three channels, and computes a number, a pair of
    a number and its spread, or a mapping of numbers. It may declare them: `declared`, a mapping of names to
    `Declaration`s; else its class's name is the number's, and torchmetrics' `higher_is_better` its direction.
    """

    metric: Metric
    n: int | None = None  # samples; None for as many as there are test images, at most 2,000
    split: str = "train"  # of the real images: train, test or val

    def __post_init__(self) -> None:
        _check(self.split, n=self.n)
        if getattr(self.metric, "normalize", False):
            raise ValueError(
                "normalize=true expects images in [0, 1], but samples are measured in 8 bits: leave it false"
            )


@dataclass(eq=False)
class QualityMetric(ABC):
    """A Fréchet distance in the features of one extractor, and the choices that its value depends on.

    Raises ValueError for a count outside 1..MAX_SAMPLES, an unknown split or a missing reference file.
    """

    distance: ClassVar[str]  # name of the Fréchet distance in summary.json, after the split
    kernel_distance: ClassVar[str]  # and of the kernel distance
    title: ClassVar[str] = ""  # of the Fréchet distance, where its name in capitals will not do
    network: ClassVar[str] = ""  # whose copy of a network gives the features, for cards; "" if there is one
    batch: ClassVar[int] = 500  # images whose features are extracted at once

    n: int | None = None  # samples of a repeat; None for as many as there are test images, at most MAX_DEFAULT_SAMPLES
    repeats: int = 3  # repeats of n samples each, whose spread gives the standard error
    split: str = "train"  # of the real images: train, test or val
    real: int | str | None = None  # number of real images; None for n, "all" for the whole split
    flips: bool = False  # whether each real image is added mirrored as well
    reference: str | None = None  # a file as `noising reference` writes it, in place of the real images' statistics
    neighbours: int = 5  # training images beside each of the samples nearest to one, in the picture

    def __post_init__(self) -> None:
        _check(self.split, n=self.n, repeats=self.repeats, neighbours=self.neighbours)
        for name in ("distance", "kernel_distance", "title"):
            if not isinstance(getattr(self, name, None), str):
                raise ValueError(f"{type(self).__name__}.{name} must be a name, a string in the class")
        real = self.real
        if real is not None and real != "all" and (isinstance(real, str | bool) or real < 2):
            raise ValueError(f"real must be null (as many as n), all, or a number of images, got {real}")
        if self.reference is not None and not Path(self.reference).is_file():
            raise ValueError(f"reference={self.reference}: there is no such file")

    @property
    def declared(self) -> dict[str, Declaration]:
        """Declarations of the numbers by name, the one that stands for all of them first."""
        title = self.title or f"Fréchet distance ({self.distance.upper().replace('_', '-')})"
        kernel = Declaration(f"kernel distance ({self.kernel_distance.upper().replace('_', '-')})", "", "lower", False)
        return {self.distance: Declaration(title, better="lower"), self.kernel_distance: kernel, **SCORES}

    def real_images(self, samples: int | None) -> int | None:
        """Number of real images to compare `samples` with; None for the whole split."""
        return None if self.real == "all" else int(self.real or 0) or samples

    def dims(self, data: ImageData) -> int | None:
        """The number of features, where it is known before the extractor is made.

        Raises UnmeasurableError if the data set allows no extractor.
        """
        return None

    @abstractmethod
    def extractor(self, data: ImageData) -> FeatureExtractor:
        """The network, in evaluation mode, on the host. Raises ConfigError if it cannot be had."""

    def scores(self, logits: Tensor | None, class_labels: Tensor | None) -> dict[str, float]:
        """Further numbers from the extractor's class logits (N, K) and the classes (N,) that were sampled for.

        Those that `declared` does not name are called by their names.
        """
        return {}


def _check(split: str, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not 1 <= value <= MAX_SAMPLES):
            raise ValueError(f"{name} must be a whole number from 1 to {MAX_SAMPLES}, got {value}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split}")


class ClassifierDistance(QualityMetric):
    """FD: the Fréchet distance in the features of a small classifier fitted to the data set's own labels."""

    distance, kernel_distance = "fd", "kd"

    @property
    def declared(self) -> dict[str, Declaration]:
        return {**super().declared, "class_accuracy": Declaration("fraction of the requested class", "", "higher")}

    def dims(self, data: ImageData) -> int | None:
        require_classes(data)
        return Classifier.dims

    def extractor(self, data: ImageData) -> FeatureExtractor:
        return fitted_classifier(data)

    def scores(self, logits: Tensor | None, class_labels: Tensor | None) -> dict[str, float]:
        if logits is None or class_labels is None:
            return {}
        return {"class_accuracy": float((logits.argmax(1).cpu() == class_labels.cpu()).double().mean())}


@dataclass(eq=False)
class InceptionDistance(QualityMetric):
    """FID, KID and the Inception score, in the features of the 2015 Inception network. Heusel et al. (2017)."""

    distance, kernel_distance = "fid", "kid"
    title = "Fréchet Inception distance (FID)"
    network = "torch-fidelity's port of the 2015 Inception network"
    batch = 50

    repeats: int = 1
    inception_weights: str | None = None  # a local file of the weights; None to download them
    layer: int = 2048  # width of the layer that gives the features: 64, 192, 768 or 2048

    @property
    def declared(self) -> dict[str, Declaration]:
        return {**super().declared, "inception_score": Declaration("Inception score", better="higher")}

    def extractor(self, data: ImageData) -> FeatureExtractor:
        with config_errors("metrics"):
            three_channels(data.train.pixels[:1])
            return Inception(self.inception_weights, self.layer)

    def scores(self, logits: Tensor | None, class_labels: Tensor | None) -> dict[str, float]:
        return {} if logits is None else {"inception_score": inception_score(logits)}


@dataclass(eq=False)
class DINOv2Distance(QualityMetric):
    """FD-DINOv2: the Fréchet distance in the features of DINOv2 ViT-L/14. Stein et al. (2023)."""

    distance, kernel_distance = "fd_dinov2", "kd_dinov2"
    title = "Fréchet distance (FD-DINOv2)"
    batch = 32

    repeats: int = 1
    dinov2_weights: str | None = None  # a local file of the weights; None to download them
    dinov2_repo: str | None = None  # a local clone of facebookresearch/dinov2; None to download it

    def extractor(self, data: ImageData) -> FeatureExtractor:
        with config_errors("metrics"):
            three_channels(data.train.pixels[:1])
            return DINOv2(self.dinov2_weights, self.dinov2_repo)


FEATURE_NUMBERS = {
    name: declaration
    for metric in (ClassifierDistance(), InceptionDistance(), DINOv2Distance())
    for name, declaration in metric.declared.items()
}
"""Declarations of all numbers that are measured by features."""
