"""Features and statistics of real images, to which samples are compared, and the classifier fitted to them.

They depend on the data set and the extractor alone, so they are computed once and cached: in NOISING_CACHE, or else the
user's cache folder.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import platformdirs
import torch
from torch import Tensor

from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.metrics import classifier as classifier_code
from noising.metrics.classifier import Classifier, fit_classifier
from noising.metrics.extractors import FeatureExtractor, extract
from noising.metrics.statistics import FeatureStatistics, write_statistics
from noising.runs.folder import replacing

log = logging.getLogger(__name__)


class UnmeasurableError(ConfigError):
    """A metric has no features, or too few, in this data set, and no option of the user's is to blame."""


class Reference(NamedTuple):
    """Features of n real images of a split."""

    features: Tensor  # (N, dims) float32; N = 2 n with flips
    statistics: FeatureStatistics
    images: Tensor  # (n,) int64, indices in the split
    card: dict[str, Any]  # all that the features depend on


class ReferenceFeatures:
    """Features of one data set's real images by one extractor."""

    def __init__(self, data: ImageData, extractor: FeatureExtractor, batch: int) -> None:
        """batch: images whose features are extracted at once."""
        self.data, self.extractor, self.batch = data, extractor, batch
        self.digest = extractor.digest
        self._read: dict[tuple[str, int | None, bool], Reference] = {}

    def features(self, pixels: Tensor) -> Tensor:
        """Features (N, dims) float32 of images (N, C, H, W) uint8 in the data set's grey levels."""
        return extract(self.extractor, (self.data.to_8bit(part) for part in torch.split(pixels, self.batch)))

    def reference(self, split: str, count: int | None = None, flips: bool = False) -> Reference:
        """The features of `count` evenly spaced images of a split, None for all; flips adds each mirrored.

        Raises ConfigError if the split has fewer.
        """
        choice = (split, count, flips)
        if choice in self._read:
            return self._read[choice]
        pixels: Tensor = getattr(self.data, split).pixels
        there = len(pixels)
        if count is not None and count > there:
            raise ConfigError(
                f"metrics: {count} images are more than the {there} {split} images of {self.data.name}: use fewer"
            )
        chosen = torch.arange(count or there) * there // (count or there)
        pixels = pixels[chosen]
        card = {
            **self.data.identity,
            "split": split,
            "images": len(chosen),
            "flips": flips,
            "channels": self.data.channels,
            "resolution": self.data.resolution,
            "resize": self.data.resize,
            "pixels_sha256": digest(pixels),
            "extractor": f"{self.extractor.name}, {self.extractor.dims} dims",
            "extractor_sha256": self.digest,
        }

        def write(file: IO[bytes]) -> None:
            features = self.features(torch.cat([pixels, pixels.flip(-1)]) if flips else pixels)
            statistics = FeatureStatistics.from_features(features)
            write_statistics(file, ".npz", statistics, card, features=features.numpy())

        def read(file: Path | IO[bytes]) -> Reference:
            with np.load(file, allow_pickle=False) as fields:
                mean, covariance, features = (torch.from_numpy(fields[name]) for name in ("mu", "sigma", "features"))
            return Reference(features, FeatureStatistics(len(features), mean, covariance), chosen, card)

        self._read[choice] = cached(f"reference-{digest(json.dumps(card).encode())}.npz", write, read)
        return self._read[choice]


def require_classes(data: ImageData) -> Tensor:
    """The labels (N,) of the training images; raises UnmeasurableError if there are none, or of a single class."""
    if data.classes < 2 or data.train.labels is None:
        what = "a single class" if data.classes == 1 else "no labels"
        raise UnmeasurableError(
            f"metrics=fd: {data.name} has {what} for the classifier in whose features samples are measured: "
            "use metrics=fid, or metrics=null for none"
        )
    return data.train.labels


def fitted_classifier(data: ImageData) -> Classifier:
    """The classifier of the data set's training images, on the host; its first fit takes seconds, then it is cached.

    Raises UnmeasurableError if the data set has no labels, or a single class.
    """
    labels, pixels = require_classes(data), data.train.pixels
    shape = (data.channels, data.resolution, data.classes)
    made_by = Path(classifier_code.__file__).read_bytes()  # other code fits another classifier
    key = digest(made_by, f"{torch.__version__} {shape} {data.levels}".encode(), pixels, labels)

    def write(file: IO[bytes]) -> None:
        torch.save(fit_classifier(data.to_8bit(pixels), labels, data.classes).state_dict(), file)

    def read(file: Path | IO[bytes]) -> Classifier:
        fitted = Classifier(*shape)
        fitted.load_state_dict(torch.load(file, weights_only=True))
        return fitted.eval().requires_grad_(False)

    return cached(f"classifier-{key}.pt", write, read)


T = TypeVar("T")


def cached(name: str, write: Callable[[IO[bytes]], None], read: Callable[[Path | IO[bytes]], T]) -> T:
    """Read a file of the cache; write it first where it is missing or damaged.

    Where it cannot be written, a line says so, and nothing is stored.
    """
    file = Path(os.environ.get("NOISING_CACHE") or platformdirs.user_cache_path("noising")) / name
    with suppress(Exception):
        return read(file)
    mine = file.with_name(f"{name}.{os.getpid()}")  # several jobs of a sweep may make it at once
    try:
        with replacing(mine) as target:
            write(target)
        os.replace(mine, file)
        return read(file)
    except OSError as error:  # of a folder that cannot be written before the work of `write`, of a full disk after it
        why = error.strerror or error
        log.warning("%s cannot be written (%s): the next run computes it again; set NOISING_CACHE=FOLDER", file, why)
        with suppress(OSError):
            mine.unlink(missing_ok=True)
    held = io.BytesIO()
    write(held)
    held.seek(0)
    return read(held)


def digest(*parts: bytes | Tensor) -> str:
    """A hash of bytes and of tensors' shapes and contents: 32 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
    return sha.hexdigest()[:32]
