"""How the quality of samples is measured: in which features, on how many samples, against which real images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import copy
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
from noising.metrics.statistics import FeatureStatistics, StatisticsFile, frechet_distance, read_statistics
from noising.plots.samples import neighbour_rows

__all__ = [
    "ALL",
    "ClassifierDistance",
    "DINOv2Distance",
    "InceptionDistance",
    "NearestToTraining",
    "QualityMetric",
    "SampleQuality",
    "measured",
]


ALL = "all"
MAX_SAMPLES = 10_000_000
"""Samples: the features of all lie in memory."""


class QualityMetric(ABC):
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
            if value is not None and (isinstance(value, bool) or not 1 <= value <= MAX_SAMPLES):
                raise ValueError(f"{name} must be a whole number from 1 to {MAX_SAMPLES}, got {value}")
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


class ClassifierDistance(QualityMetric):
    """FD: the Fréchet distance in the features of a small classifier fitted to the data set's own labels."""

    distance, kernel_distance = "fd", "kd"

    def extractor(self, data: ImageData) -> FeatureExtractor:
        return fitted_classifier(data)

    def scores(self, logits: Tensor | None, asked: Tensor | None) -> dict[str, float]:
        if logits is None or asked is None:
            return {}
        return {"class_accuracy": float((logits.argmax(1).cpu() == asked.cpu()).double().mean())}


class InceptionDistance(QualityMetric):
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
        with config_errors("metrics"):
            three_channels(data.train.pixels[:1])
            return Inception(self.inception_weights, self.layer)

    def scores(self, logits: Tensor | None, asked: Tensor | None) -> dict[str, float]:
        return {} if logits is None else {"inception_score": inception_score(logits)}


class DINOv2Distance(QualityMetric):
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
        with config_errors("metrics"):
            three_channels(data.train.pixels[:1])
            return DINOv2(self.dinov2_weights, self.dinov2_repo)


MAX_DEFAULT_SAMPLES = 2000
"""Samples of a repeat, unless more are asked for."""
LIBRARIES = ("torch", "torch-fidelity", "numpy")


class NearestToTraining(NamedTuple):
    """The samples that are most like a training image, and the training images nearest to each."""

    samples: Tensor  # (rows,) int64, among the samples
    neighbours: Tensor  # (rows, k) int64, in the training split
    nearness: Tensor  # (rows,): the distance to the nearest, over that one's to the nearest other training image


class SampleQuality:
    """Measures images of one data set by one protocol.

    The bias of a Fréchet distance goes as 1/n, so that two compare only at equal counts; the yardstick beside each
    number is the same of as many real test images.
    """

    def __init__(
        self,
        protocol: QualityMetric,
        data: ImageData,
        references: ReferenceFeatures | None = None,
        option: str = "metrics.n",
    ) -> None:
        """Makes the extractor and the real images' features, or finds them in the cache, or in references.

        option: what says how many samples, for messages.

        Raises ConfigError for what cannot be: too few images or samples, weights that cannot be had, statistics of
        other images than these.
        """
        self.protocol = protocol
        self.data = data
        self.references = references or ReferenceFeatures(data, protocol.extractor(data), protocol.batch)
        splits = [getattr(data, split).pixels for split in {protocol.split, "test"}]
        self.count = protocol.n or min(*map(len, splits), MAX_DEFAULT_SAMPLES)
        extractor = self.references.extractor
        if self.count <= extractor.dims:
            raise ConfigError(
                f"{option}={self.count}: a Fréchet distance of {extractor.dims} features needs at least "
                f"{extractor.dims + 1} samples, or the covariance is singular"
            )
        self.real = self.references.of(protocol.split, protocol.real_images(self.count), protocol.flips)
        self.elsewhere = self._elsewhere()

    def _elsewhere(self) -> StatisticsFile | None:
        """The statistics that were computed elsewhere, if the protocol has some."""
        path, extractor = self.protocol.reference, self.references.extractor
        if path is None:
            return None
        with config_errors(f"metrics.reference={path}"):
            found = read_statistics(path)
            if found.statistics.dims != extractor.dims:
                raise ValueError(
                    f"statistics of {found.statistics.dims} features, where {extractor.name} has {extractor.dims}"
                )
            for name, mine in (("resolution", self.data.resolution), ("channels", self.data.channels)):
                if found.card.get(name, mine) != mine:
                    raise ValueError(f"{name} {found.card[name]}, where {self.data.name} has {mine}")
            if found.card.get("extractor_sha256", self.references.digest) != self.references.digest:
                raise ValueError(f"of another extractor: {found.card.get('extractor')} with other weights")
        return found

    def once(self, n: int | None) -> SampleQuality:
        """The same, of one repeat and of n samples; None for as many as here."""
        protocol = copy(self.protocol)
        protocol.n, protocol.repeats = n or self.count, 1
        return SampleQuality(protocol, self.data, self.references, "callbacks.quality.n" if n else "metrics.n")

    @property
    def total(self) -> int:
        """Samples of all repeats."""
        return self.count * self.protocol.repeats

    @property
    def card(self) -> dict[str, Any]:
        """What the numbers depend on, besides the samples."""
        reference = self.real.card if self.elsewhere is None else self._card_elsewhere
        return {
            "samples": self.count,
            "repeats": self.protocol.repeats,
            "features": reference["extractor"],
            "extractor_sha256": self.references.digest,
            "reference": {name: value for name, value in reference.items() if not name.startswith("extractor")},
            "rounding": f"grey levels 0..{self.data.levels - 1}, then 8 bits",
            "libraries": {name: version(name) for name in LIBRARIES},
        }

    @property
    def _card_elsewhere(self) -> dict[str, Any]:
        assert self.elsewhere is not None
        own = {"extractor": self.real.card["extractor"], "images": self.elsewhere.statistics.count}
        return {**own, "file": self.protocol.reference, **self.elsewhere.card}

    @property
    def _statistics(self) -> FeatureStatistics:
        return self.real.statistics if self.elsewhere is None else self.elsewhere.statistics

    @cached_property
    def _training(self) -> Reference:
        """Where copies are looked for: the whole training split, unless the protocol says how many images."""
        few = self.protocol.real if isinstance(self.protocol.real, int) else None
        return self.references.of("train", few, False)

    @cached_property
    def _training_radii(self) -> Tensor:
        return radii(self._training.features.double(), 1)[1]

    @cached_property
    def baseline(self) -> dict[str, float]:
        """The same numbers of as many real test images; none where there are fewer."""
        test = self.data.test
        if len(test.pixels) < self.count:
            return {}
        real = self.references.of("test", self.count)
        return self._numbers(real.features, None if test.labels is None else test.labels[real.images])

    def measure(self, features: Tensor, asked: Tensor | None) -> dict[str, float]:
        """Numbers by name, with `_mc_se` the standard error of each, and `_baseline` the real test images'.

        features: (repeats · count, dims), those of a repeat together; asked: (repeats · count,), the classes that
        the images were to show. Means over the repeats, never the best.
        """
        labels = [None] * self.protocol.repeats if asked is None else torch.split(asked, self.count)
        each = [self._numbers(part, of) for part, of in zip(torch.split(features, self.count), labels, strict=True)]
        numbers: dict[str, float] = {}
        for name in each[0]:
            values = torch.tensor([one[name] for one in each], dtype=torch.float64)
            numbers[name] = float(values.mean())
            if name == "class_accuracy":
                numbers[f"{name}_mc_se"] = _rate_error(numbers[name], len(features))
            elif len(values) > 1:
                numbers[f"{name}_mc_se"] = float(values.std()) / math.sqrt(len(values))
            if name in self.baseline:
                numbers[f"{name}_baseline"] = self.baseline[name]
        return numbers

    def _numbers(self, features: Tensor, asked: Tensor | None) -> dict[str, float]:
        real = self.real.features
        return {
            self.protocol.distance: frechet_distance(_statistics(features), self._statistics),
            self.protocol.kernel_distance: kernel_distance(features, real),
            **precision_recall(features, real),
            "memorized": same_as_nearest(nearest(features, self._training.features, 1), self._training_radii),
            **self.protocol.scores(self.references.extractor.class_logits(features), asked),
        }

    def likest(self, features: Tensor, rows: int = 8) -> NearestToTraining:
        """The samples that are nearest to a training image, by how far that one is from the others of its kind."""
        found = nearest(features, self._training.features, self.protocol.neighbours)
        nearness = found.distance[:, 0] / self._training_radii[found.indices[:, 0]]
        first = nearness.argsort()[:rows]
        return NearestToTraining(first, self._training.images[found.indices[first]], nearness[first])

    def draw_likest(self, file: Path, features: Tensor, pixels: Tensor) -> None:
        """The picture of it. pixels: (N, C, H, W) uint8 grey levels of the samples."""
        likest = self.likest(features)
        samples, near = (
            self.data.to_8bit(images)
            for images in (pixels[likest.samples], self.data.train.pixels[likest.neighbours.flatten()])
        )
        names = [f"no. {i}\n{ratio:.2f}" for i, ratio in zip(likest.samples.tolist(), likest.nearness, strict=True)]
        title = "the samples most like a training image\n(below 1: nearer to it than any other training image is)"
        neighbour_rows(file, samples, near.reshape(*likest.neighbours.shape, *near.shape[1:]), names, title)


def measured(numbers: Iterable[str]) -> list[str]:
    """The names that are of a measurement, and not of an error or a yardstick."""
    return [name for name in numbers if not name.endswith(("_mc_se", "_baseline"))]


def _statistics(features: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics


def _rate_error(rate: float, count: int) -> float:
    """Of the posterior after a uniform prior: not 0 where all are right."""
    seen = (rate * count + 1) / (count + 2)
    return math.sqrt(seen * (1 - seen) / (count + 3))
