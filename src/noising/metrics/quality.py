"""Sample quality: a metric names features, sample count and real images; `SampleQuality` evaluates samples by it.

Every metric is a Fréchet distance in its own features, with the kernel distance, precision, recall, density, coverage
and the share of memorized samples in the same features beside it. The bias of a Fréchet distance goes as 1/n, so two
compare only at equal n; the baseline beside each number is the same number of n real test images.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from noising.data.image_data import SPLITS, ImageData
from noising.errors import ConfigError, config_errors
from noising.metrics.extractors import DINOv2, FeatureExtractor, Inception, three_channels
from noising.metrics.reference_features import Reference, ReferenceFeatures, fitted_classifier
from noising.metrics.scores import inception_score, kernel_distance, nearest, precision_recall, radii, same_as_nearest
from noising.metrics.statistics import FeatureStatistics, frechet_distance, read_statistics

MAX_SAMPLES = 10_000_000  # upper limit of the samples of a repeat: the features of all lie in memory
MAX_DEFAULT_SAMPLES = 2000  # the same where n is None


@dataclass(eq=False)
class QualityMetric(ABC):
    """A Fréchet distance in the features of one extractor, and the choices that its value depends on.

    Raises ValueError for a count outside 1..MAX_SAMPLES, an unknown split or a missing reference file.
    """

    distance: ClassVar[str]  # name of the Fréchet distance in summary.json, after the split
    kernel_distance: ClassVar[str]  # and of the kernel distance
    batch: ClassVar[int] = 500  # images whose features are extracted at once

    n: int | None = None  # samples of a repeat; None for as many as there are test images, at most MAX_DEFAULT_SAMPLES
    repeats: int = 3  # repeats of n samples each, whose spread gives the standard error
    split: str = "train"  # of the real images: train, test or val
    real: int | str | None = None  # number of real images; None for n, "all" for the whole split
    flips: bool = False  # whether each real image is added mirrored as well
    reference: str | None = None  # a file as `noising reference` writes it, in place of the real images' statistics
    neighbours: int = 5  # training images beside each of the samples nearest to one, in the picture

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("repeats", self.repeats), ("neighbours", self.neighbours)):
            if value is not None and (isinstance(value, bool) or not 1 <= value <= MAX_SAMPLES):
                raise ValueError(f"{name} must be a whole number from 1 to {MAX_SAMPLES}, got {value}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split}")
        real = self.real
        if real is not None and real != "all" and (isinstance(real, str | bool) or real < 2):
            raise ValueError(f"real must be null (as many as n), all, or a number of images, got {real}")
        if self.reference is not None and not Path(self.reference).is_file():
            raise ValueError(f"reference={self.reference}: there is no such file")

    def real_images(self, samples: int | None) -> int | None:
        """Number of real images to compare `samples` with; None for the whole split."""
        return None if self.real == "all" else int(self.real or 0) or samples

    @abstractmethod
    def extractor(self, data: ImageData) -> FeatureExtractor:
        """The network, in evaluation mode, on the host. Raises ConfigError if it cannot be had."""

    def scores(self, logits: Tensor | None, class_labels: Tensor | None) -> dict[str, float]:
        """Further numbers from the extractor's class logits (N, K) and the classes (N,) that were sampled for."""
        return {}


class ClassifierDistance(QualityMetric):
    """FD: the Fréchet distance in the features of a small classifier fitted to the data set's own labels."""

    distance, kernel_distance = "fd", "kd"

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
    batch = 50

    repeats: int = 1
    inception_weights: str | None = None  # a local file of the weights; None to download them
    layer: int = 2048  # width of the layer that gives the features: 64, 192, 768 or 2048

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
    batch = 32

    repeats: int = 1
    dinov2_weights: str | None = None  # a local file of the weights; None to download them
    dinov2_repo: str | None = None  # a local clone of facebookresearch/dinov2; None to download it

    def extractor(self, data: ImageData) -> FeatureExtractor:
        with config_errors("metrics"):
            three_channels(data.train.pixels[:1])
            return DINOv2(self.dinov2_weights, self.dinov2_repo)


LIBRARIES = ("torch", "torch-fidelity", "numpy")  # the numbers may depend on their versions


class NearestToTraining(NamedTuple):
    """The samples nearest to a training image, and the training images nearest to each."""

    samples: Tensor  # (rows,) int64, among the samples
    neighbours: Tensor  # (rows, k) int64, in the training split
    nearness: Tensor  # (rows,): distance to the nearest training image over that image's to its own nearest


class SampleQuality:
    """Evaluates samples of one data set by one metric."""

    def __init__(
        self,
        metric: QualityMetric,
        data: ImageData,
        references: ReferenceFeatures | None = None,
        option: str = "metrics.n",
    ) -> None:
        """Make the extractor and the features of the real images, or take them from the cache or from `references`.

        option: name of the option that sets the number of samples, for error messages.

        Raises ConfigError for too few images or samples, weights that cannot be had, or a reference file of another
        extractor or of images of another shape.
        """
        self.metric, self.data = metric, data
        self.references = references or ReferenceFeatures(data, metric.extractor(data), metric.batch)
        splits = [getattr(data, split).pixels for split in {metric.split, "test"}]
        self.count = metric.n or min(*map(len, splits), MAX_DEFAULT_SAMPLES)
        extractor = self.references.extractor
        if self.count <= extractor.dims:
            raise ConfigError(
                f"{option}={self.count}: a Fréchet distance of {extractor.dims} features needs at least "
                f"{extractor.dims + 1} samples, or the covariance is singular"
            )
        self.real = self.references.reference(metric.split, metric.real_images(self.count), metric.flips)
        self._statistics, self._reference_card = self.real.statistics, self.real.card
        if metric.reference is not None:
            with config_errors(f"metrics.reference={metric.reference}"):
                self._use_statistics(metric.reference)

    def _use_statistics(self, path: str) -> None:
        """Compare samples with the statistics of a file."""
        self._statistics, card = read_statistics(path)
        extractor, dims = self.references.extractor, self._statistics.dims
        if dims != extractor.dims:
            raise ValueError(f"statistics of {dims} features, where {extractor.name} has {extractor.dims}")
        for name, own in (("resolution", self.data.resolution), ("channels", self.data.channels)):
            if card.get(name, own) != own:
                raise ValueError(f"{name} {card[name]}, where {self.data.name} has {own}")
        if card.get("extractor_sha256", self.references.digest) != self.references.digest:
            raise ValueError(f"of another extractor: {card.get('extractor')} with other weights")
        facts = {"extractor": self.real.card["extractor"], "images": self._statistics.count, "file": path}
        self._reference_card = facts | card

    def for_validation(self, n: int | None) -> "SampleQuality":
        """This evaluation with a single repeat of n samples; None for as many as here."""
        metric = replace(self.metric, n=n or self.count, repeats=1)
        return SampleQuality(metric, self.data, self.references, "callbacks.quality.n" if n else "metrics.n")

    @property
    def total(self) -> int:
        """Samples of all repeats."""
        return self.count * self.metric.repeats

    @property
    def card(self) -> dict[str, Any]:
        """All that the numbers depend on beside the samples."""
        reference = self._reference_card
        return {
            "samples": self.count,
            "repeats": self.metric.repeats,
            "features": reference["extractor"],
            "extractor_sha256": self.references.digest,
            "reference": {name: value for name, value in reference.items() if not name.startswith("extractor")},
            "rounding": f"grey levels 0..{self.data.levels - 1}, then 8 bits",
            "libraries": {name: version(name) for name in LIBRARIES},
        }

    @cached_property
    def _training(self) -> Reference:
        """The images among which copies are searched: the training split, or `real` of it where that is a number."""
        count = self.metric.real if isinstance(self.metric.real, int) else None
        return self.references.reference("train", count)

    @cached_property
    def _training_radii(self) -> Tensor:
        return radii(self._training.features.double(), 1)[1]

    @cached_property
    def baseline(self) -> dict[str, float]:
        """The numbers of as many real test images; empty where there are fewer."""
        pixels, labels = self.data.test
        if len(pixels) < self.count:
            return {}
        real = self.references.reference("test", self.count)
        return self._numbers(real.features, None if labels is None else labels[real.images])

    def evaluate(self, features: Tensor, class_labels: Tensor | None) -> dict[str, float]:
        """Means over the repeats by name, each with its standard error `_mc_se` and its `_baseline`.

        features: (repeats · count, dims), repeat after repeat; class_labels: (repeats · count,), the classes that were
        sampled for, None without classes.
        """
        labels = [None] * self.metric.repeats if class_labels is None else torch.split(class_labels, self.count)
        each = [self._numbers(part, of) for part, of in zip(torch.split(features, self.count), labels, strict=True)]
        numbers: dict[str, float] = {}
        for name in each[0]:
            values = torch.tensor([one[name] for one in each], dtype=torch.float64)
            numbers[name] = float(values.mean())
            if name == "class_accuracy":
                # the standard deviation of the posterior after a uniform prior: not 0 where all are right
                rate = (numbers[name] * len(features) + 1) / (len(features) + 2)
                numbers[f"{name}_mc_se"] = math.sqrt(rate * (1 - rate) / (len(features) + 3))
            elif len(values) > 1:
                numbers[f"{name}_mc_se"] = float(values.std()) / math.sqrt(len(values))
            if name in self.baseline:
                numbers[f"{name}_baseline"] = self.baseline[name]
        return numbers

    def _numbers(self, features: Tensor, class_labels: Tensor | None) -> dict[str, float]:
        return {
            self.metric.distance: frechet_distance(FeatureStatistics.from_features(features), self._statistics),
            self.metric.kernel_distance: kernel_distance(features, self.real.features),
            **precision_recall(features, self.real.features),
            "memorized": same_as_nearest(nearest(features, self._training.features, 1), self._training_radii),
            **self.metric.scores(self.references.extractor.class_logits(features), class_labels),
        }

    def nearest_to_training(self, features: Tensor, rows: int = 8) -> NearestToTraining:
        """The samples nearest to a training image, relative to that image's distance to its nearest other."""
        found = nearest(features, self._training.features, self.metric.neighbours)
        nearness = found.distance[:, 0] / self._training_radii[found.indices[:, 0]]
        first = nearness.argsort()[:rows]
        return NearestToTraining(first, self._training.images[found.indices[first]], nearness[first])

    def images_of(self, found: NearestToTraining, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The samples (rows, C, H, W) and their neighbours (rows, k, C, H, W) as 8-bit images.

        pixels: (N, C, H, W) uint8, the grey levels of all samples.
        """
        neighbours = self.data.to_8bit(self.data.train.pixels[found.neighbours.flatten()])
        samples = self.data.to_8bit(pixels[found.samples])
        return samples, neighbours.reshape(*found.neighbours.shape, *neighbours.shape[1:])


def measured(numbers: Iterable[str]) -> list[str]:
    """The names of measurements: all but the standard errors and the baselines."""
    return [name for name in numbers if not name.endswith(("_mc_se", "_baseline"))]
