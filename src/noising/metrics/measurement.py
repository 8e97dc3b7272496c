"""Measuring samples: batches on any number of ranks, put in order, and the numbers of a metric from all of them."""

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from noising.data.image_data import ImageData
from noising.errors import ConfigError, config_errors, one_line
from noising.metrics.extractors import three_channels
from noising.metrics.quality import FEATURE_NUMBERS, ImageMetric, QualityMetric
from noising.metrics.reference_features import Reference, ReferenceFeatures, UnmeasurableError
from noising.metrics.scores import kernel_distance, nearest, precision_recall, radii, same_as_nearest
from noising.metrics.statistics import FeatureStatistics, frechet_distance, read_statistics
from noising.runs.declarations import Declaration

MAX_DEFAULT_SAMPLES = 2000  # upper limit of the samples of a repeat where n is None
MIN_DEFAULT_SAMPLES = 100  # and its least value, where there are as many images
LIBRARIES = ("torch", "torch-fidelity", "numpy")  # the numbers of features may depend on their versions


def sample_quality(
    metric: object,
    data: ImageData,
    options: Mapping[str, Any] | None = None,
    taken: Collection[str] = (),
    most: int | None = None,
) -> "SampleQuality":
    """The measuring of samples by a metric of `quality`, or by a bare torchmetrics.Metric.

    options: the metric's as they were given, for the card; taken: names that other numbers have; most: upper limit of
    the samples of all repeats where the metric does not say how many.

    Raises ConfigError for anything else, for a number whose name is taken, and for what cannot be measured.
    """
    quality: SampleQuality
    if isinstance(metric, Metric):
        with config_errors("metrics"):
            metric = ImageMetric(metric)
    if isinstance(metric, ImageMetric):
        quality, taken = ImageQuality(metric, data, options, most), {*taken, *FEATURE_NUMBERS}
    elif isinstance(metric, QualityMetric):
        quality = FeatureQuality(metric, data, most=most)
    else:
        name = type(metric).__qualname__
        raise ConfigError(f"metrics: expected a QualityMetric or a torchmetrics.Metric, got {name}")
    for name in quality.declared:
        if name in taken:
            raise ConfigError(f"metrics: another number is named {name}: declare another name, or rename the class")
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"metrics: {name!r} cannot name a number: use letters, digits and _ . - only")
    return quality


class DrawnSamples(Metric):
    """Samples of all ranks in the order of their indices: grey levels and features, and how many are not finite."""

    full_state_update = False
    index: list[Tensor]
    pixels: list[Tensor]
    features: list[Tensor]
    lost: Tensor

    def __init__(self, shape: tuple[int, ...], dims: int) -> None:
        """shape: of an image; dims: number of features, 0 for none."""
        super().__init__()
        for name in ("index", "pixels", "features"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("lost", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        nothing = torch.zeros(0, *shape, dtype=torch.uint8)  # all ranks must bring tensors of one shape
        self.update(torch.zeros(0, dtype=torch.int64), nothing, torch.zeros(0, dims), torch.zeros(0, dtype=torch.bool))

    def update(self, index: Tensor, pixels: Tensor, features: Tensor, finite: Tensor) -> None:
        """Add B samples on the host: index (B,), pixels (B, C, H, W) uint8, features (B, dims), finite (B,) bool."""
        self.index.append(index)
        self.pixels.append(pixels)
        self.features.append(features)
        self.lost += (~finite).sum()

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels and features in order, and the number of samples that are not finite."""
        order = dim_zero_cat(self.index).argsort()
        return dim_zero_cat(self.pixels)[order], dim_zero_cat(self.features)[order], self.lost


class Neighbours(NamedTuple):
    """Samples as 8-bit images (rows, C, H, W) beside their nearest training images (rows, k, C, H, W)."""

    images: Tensor
    neighbours: Tensor
    samples: Tensor  # (rows,) int64, numbers of the samples
    nearness: Tensor  # (rows,): distance to the nearest training image over that image's to its own nearest


class SampleQuality(ABC):
    """Measures samples of one data set, given in batches on any number of ranks, by one metric."""

    declared: Mapping[str, Declaration]
    """Declarations of the numbers; the first is the one that stands for all."""
    lost: int
    """Samples of the last measuring that were not finite; then nothing was measured."""
    _dims = 0
    _device: torch.device | str = "cpu"

    def __init__(self, data: ImageData, count: int, repeats: int = 1) -> None:
        """count: samples of a repeat."""
        self.data, self.count, self.repeats = data, count, repeats

    @property
    def leading(self) -> str:
        """The name of the number that stands for all."""
        return next(iter(self.declared))

    @property
    def total(self) -> int:
        """Samples of all repeats."""
        return self.count * self.repeats

    @property
    @abstractmethod
    def card(self) -> dict[str, Any]:
        """All that the numbers depend on beside the samples."""

    @abstractmethod
    def for_validation(self, n: int | None) -> "SampleQuality":
        """This measuring with a single repeat of n samples; None for as many as here."""

    def begin(self, device: torch.device | str) -> None:
        """Forget all samples, and extract features on the device from here on."""
        self._device = device
        shape = (self.data.channels, self.data.resolution, self.data.resolution)
        self._samples = DrawnSamples(shape, self._dims)

    def update(self, index: range, pixels: Tensor, finite: Tensor) -> None:
        """Add samples: indices of B, their grey levels (B, C, H, W) uint8, and whether each was finite (B,) bool."""
        finite = finite.cpu()
        features = self._features(pixels)
        features[~finite] = math.nan
        self._samples.update(torch.tensor([*index]), pixels.cpu(), features, finite)

    def compute(self, class_labels: Tensor | None) -> dict[str, float]:
        """The numbers of all samples of all ranks, which must all call this; may be empty on others than the first.

        class_labels: (total,), the classes that were sampled for, None without classes.
        """
        if _ranks() > 1:
            self._samples.to(self._device)  # the backend of a GPU gathers nothing from the host
        self._pixels, self._all_features, lost = (part.cpu() for part in self._samples.compute())
        self._samples.reset()
        self.lost = int(lost)
        return {} if self.lost else self._measure(class_labels)

    def _features(self, pixels: Tensor) -> Tensor:
        return torch.zeros(len(pixels), 0)

    @abstractmethod
    def _measure(self, class_labels: Tensor | None) -> dict[str, float]: ...

    def neighbours(self) -> Neighbours | None:
        """The samples of the last measuring that are most like a training image; None for a metric without features."""
        return None


class FeatureQuality(SampleQuality):
    """Measures by the features of an extractor, held against those of real images."""

    def __init__(
        self,
        metric: QualityMetric,
        data: ImageData,
        references: ReferenceFeatures | None = None,
        option: str = "metrics.n",
        most: int | None = None,
    ) -> None:
        """Make the extractor and the features of the real images, or take them from the cache or from `references`.

        option: name of the option that sets the number of samples, for error messages; most: as in `sample_quality`,
        but never fewer than the distance needs.

        Raises UnmeasurableError for too few images, ConfigError for too few samples where an option says how many,
        weights that cannot be had, or a reference file of another extractor or of images of another shape.
        """
        self.metric, self.declared = metric, metric.declared
        dims = metric.dims(data)
        if most is not None:
            most = max(most // metric.repeats, (dims or 0) + 1)
        super().__init__(data, metric.n or _default_count(data, metric.split, most), metric.repeats)
        if dims is not None:
            self._require_enough(option, dims)  # before the work of making one
        self.references = references or ReferenceFeatures(data, metric.extractor(data), metric.batch)
        self._dims = self.references.extractor.dims
        self._require_enough(option, self._dims)
        self.real = self.references.reference(metric.split, metric.real_images(self.count), metric.flips)
        self._statistics, self._reference_card = self.real.statistics, self.real.card
        self._statistics_origin = "computed here"
        if metric.reference is not None:
            with config_errors(f"metrics.reference={metric.reference}"):
                self._use_statistics(metric.reference)

    def _require_enough(self, option: str, dims: int) -> None:
        """Raise an error where a covariance would be singular."""
        metric, name, least = self.metric, self.data.name, dims + 1
        needs = f"a Fréchet distance of {dims} features needs at least {least}"
        if metric.n is not None and self.count < least:
            raise ConfigError(f"{option}={self.count}: {needs} samples, or the covariance is singular")
        images = math.ceil(least / 2) if metric.flips else least
        if isinstance(metric.real, int) and metric.real < images:
            raise ConfigError(f"metrics.real={metric.real}: {needs} features of real images, or {images} images")
        there = len(getattr(self.data, metric.split).pixels)
        if there < images:
            raise UnmeasurableError(
                f"metrics.split={metric.split}: {name} has {there} of these images, but {needs}: measure with more "
                "images, or use metrics=null for none"
            )
        if self.count < least:
            raise UnmeasurableError(
                f"metrics.n is the number of test images of {name} by default, {self.count}, but {needs} samples: set "
                f"metrics.n={least} or more"
            )

    def _use_statistics(self, path: str) -> None:
        """Compare samples with the statistics of a file."""
        self._statistics, card = read_statistics(path)
        extractor, dims = self.references.extractor, self._statistics.dims
        if dims != extractor.dims:
            raise ValueError(f"statistics of {dims} features, but {extractor.name} has {extractor.dims}")
        if self._statistics.count is not None and self._statistics.count <= dims:
            raise ValueError(f"statistics of {self._statistics.count} images, but {dims} features need {dims + 1}")
        for name, own in (("resolution", self.data.resolution), ("channels", self.data.channels)):
            if card.get(name, own) != own:
                raise ValueError(f"{name} {card[name]}, but {self.data.name} has {own}")
        if card.get("extractor_sha256", self.references.digest) != self.references.digest:
            raise ValueError(f"statistics of another extractor: {card.get('extractor')} with other weights")
        images = {} if self._statistics.count is None else {"images": self._statistics.count}
        self._reference_card = {"extractor": self.real.card["extractor"], **images, "file": path, **card}
        maker = f"as of {card['made_by']}" if "made_by" in card else "by noising" if card else "of another tool"
        self._statistics_origin = f"{path} (mu, sigma {maker})"

    def for_validation(self, n: int | None) -> "FeatureQuality":
        metric = replace(self.metric, n=n or self.count, repeats=1)
        return FeatureQuality(metric, self.data, self.references, "callbacks.quality.n" if n else "metrics.n")

    @property
    def card(self) -> dict[str, Any]:
        reference = self._reference_card
        network = self.metric.network
        protocol = f"reference statistics: {self._statistics_origin}; features: {network}" if network else None
        return {
            "samples": self.count,
            "repeats": self.repeats,
            "features": reference["extractor"],
            "extractor_sha256": self.references.digest,
            **({"protocol": protocol} if protocol else {}),
            "reference": {name: value for name, value in reference.items() if not name.startswith("extractor")},
            **_measured_as(self.data, LIBRARIES),
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

    def begin(self, device: torch.device | str) -> None:
        super().begin(device)
        self.references.extractor.to(device)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.references.features(pixels)

    def _measure(self, class_labels: Tensor | None) -> dict[str, float]:
        return self.evaluate(self._all_features, class_labels) if _rank() == 0 else {}

    def evaluate(self, features: Tensor, class_labels: Tensor | None) -> dict[str, float]:
        """Means over the repeats by name, each with its standard error `_mc_se` and its `_baseline`.

        features: (repeats · count, dims), repeat after repeat; class_labels: (repeats · count,), the classes that were
        sampled for, None without classes.
        """
        labels = [None] * self.repeats if class_labels is None else torch.split(class_labels, self.count)
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

    def neighbours(self) -> Neighbours:
        return self.nearest_to_training(self._all_features, self._pixels)

    def nearest_to_training(self, features: Tensor, pixels: Tensor, rows: int = 8) -> Neighbours:
        """The samples nearest to a training image, relative to that image's distance to its nearest other.

        features: (N, dims); pixels: (N, C, H, W) uint8, their grey levels.
        """
        found = nearest(features, self._training.features, self.metric.neighbours)
        nearness = found.distance[:, 0] / self._training_radii[found.indices[:, 0]]
        first = nearness.argsort()[:rows]
        beside = self._training.images[found.indices[first]]
        neighbours = self.data.to_8bit(self.data.train.pixels[beside.flatten()])
        images = self.data.to_8bit(pixels[first])
        return Neighbours(images, neighbours.reshape(*beside.shape, *neighbours.shape[1:]), first, nearness[first])


class ImageQuality(SampleQuality):
    """Measures by a torchmetrics.Metric that is updated with images.

    The ranks share the samples out again, each a stretch of them, so that the metric's states, put together rank by
    rank, are in the order of one process.
    """

    BATCH = 100  # images of an update
    SEED = 0  # of the metric's own draws, such as subsets

    def __init__(
        self,
        metric: ImageMetric,
        data: ImageData,
        options: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> None:
        """Try the metric on real test images, whose numbers are the baseline.

        Raises ConfigError for what the metric raises on them, and if what it computes is no number.
        """
        self.metric, self.options = metric, options or {}
        super().__init__(data, metric.n or _default_count(data, metric.split, most))
        self._real = "real" in inspect.signature(metric.metric.update).parameters
        real = data.test.pixels
        chosen = torch.arange(self.count) * len(real) // self.count  # some twice where there are fewer
        try:
            numbers = self._numbers(real[chosen])
        except Exception as error:  # the metric is the user's or torchmetrics': whatever it raises, say it
            raise ConfigError(
                f"metrics: {type(metric.metric).__name__} cannot measure {self.count} images of {data.name}: "
                f"{one_line(error)}"
            ) from error
        self.declared = _declared(metric.metric, numbers)
        self.baseline = numbers if len(real) >= self.count else {}

    def for_validation(self, n: int | None) -> "ImageQuality":
        return self if n in (None, self.count) else ImageQuality(replace(self.metric, n=n), self.data, self.options)

    @property
    def card(self) -> dict[str, Any]:
        metric = self.metric.metric
        real = {**self.data.identity, "split": self.metric.split, "images": self.count}
        return {
            "samples": self.count,
            "repeats": self.repeats,
            "metric": f"{type(metric).__module__}.{type(metric).__qualname__}",
            "options": self.options.get("metric", self.options),
            **({"reference": real} if self._real else {}),
            **_measured_as(self.data, ("torch", "torchmetrics")),
        }

    def _measure(self, class_labels: Tensor | None) -> dict[str, float]:
        numbers = self._numbers(self._pixels)
        return numbers | {f"{name}_baseline": self.baseline[name] for name in numbers if name in self.baseline}

    def _numbers(self, pixels: Tensor) -> dict[str, float]:
        metric = self.metric.metric.to(self._device)
        metric.reset()
        given: list[tuple[Tensor, dict[str, bool]]] = [(pixels, {"real": False} if self._real else {})]
        if self._real:
            real: Tensor = getattr(self.data, self.metric.split).pixels
            given.append((real[torch.arange(self.count) * len(real) // self.count], {"real": True}))
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.SEED)
            for images, kind in given:
                for batch in self._share(images):
                    metric.update(three_channels(self.data.to_8bit(batch)).to(self._device), **kind)
            return dict(_flat(_name(metric), metric.compute()))

    def _share(self, images: Tensor) -> Iterator[Tensor]:
        """This rank's stretch of the images, in batches."""
        share = -(-len(images) // _ranks())
        return iter(torch.split(images[_rank() * share : (_rank() + 1) * share], self.BATCH))


def _default_count(data: ImageData, split: str, most: int | None) -> int:
    count = min(*(len(getattr(data, name).pixels) for name in (split, "test")), MAX_DEFAULT_SAMPLES)
    return count if most is None else min(count, max(most, MIN_DEFAULT_SAMPLES))


def _measured_as(data: ImageData, libraries: Iterable[str]) -> dict[str, Any]:
    return {
        "rounding": f"grey levels 0..{data.levels - 1}, then 8 bits",
        "libraries": {name: version(name) for name in libraries},
    }


def _ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _name(metric: Metric) -> str:
    """The name of a metric's number: the first that it declares, or its class's in the form of the others."""
    declared: Mapping[str, Declaration] = getattr(metric, "declared", {})
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(metric).__name__)
    return next(iter(declared), words.lower())


def _flat(name: str, computed: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a metric: one, a pair of one and its spread, or a mapping of names to such.

    Raises TypeError for anything else.
    """
    if isinstance(computed, Mapping):
        for key, value in computed.items():
            yield from _flat(str(key), value)
    elif isinstance(computed, tuple | list) and len(computed) == 2:
        yield from _flat(name, computed[0])
        yield from _flat(f"{name}_std", computed[1])
    elif isinstance(computed, bool) or not isinstance(computed, int | float | Tensor):
        raise TypeError(f"it computes {type(computed).__name__}, not a number, a pair or a mapping of numbers")
    elif isinstance(computed, Tensor) and computed.numel() != 1:
        raise TypeError(f"it computes a tensor of shape {tuple(computed.shape)}, not a number")
    else:
        yield name, float(computed)


def _declared(metric: Metric, numbers: Mapping[str, float]) -> dict[str, Declaration]:
    declared = dict(getattr(metric, "declared", {}))
    better: Literal["higher", "lower"] | None = None
    if metric.higher_is_better is not None:
        better = "higher" if metric.higher_is_better else "lower"
    first = next(iter(numbers))
    for name in numbers:
        words = name.replace("_", " ")
        declared.setdefault(name, Declaration(words, better=better if name == first else None, shown=name == first))
    return declared
