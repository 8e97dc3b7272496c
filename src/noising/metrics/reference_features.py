"""What drawn images are held against: the features that an extractor sees in real images, and their statistics.

They depend on the data set and the extractor alone; they are made once and kept (noising.training.cache).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import platformdirs
import torch
from torch import Tensor

from noising.data.image_data import ImageData, Images
from noising.errors import ConfigError
from noising.metrics import classifier as classifier_code
from noising.metrics.classifier import Classifier, fit_classifier
from noising.metrics.extractors import FeatureExtractor, extract
from noising.metrics.statistics import FeatureStatistics
from noising.runs.folder import replacing

__all__ = ["Reference", "ReferenceFeatures", "cached", "digest", "fitted_classifier"]


class Reference(NamedTuple):
    """Real images as an extractor sees them."""

    features: Tensor  # (N, dims) float32
    statistics: FeatureStatistics
    images: Tensor  # (n,) int64: which of the split; with flips, N = 2 n
    card: dict[str, Any]


class ReferenceFeatures:
    """Real images of one data set, as one extractor sees them."""

    def __init__(self, data: ImageData, extractor: FeatureExtractor, batch: int) -> None:
        """batch: images whose features are extracted at once."""
        self.data = data
        self.extractor = extractor
        self.batch = batch
        self._read: dict[tuple[str, int | None, bool], Reference] = {}

    @cached_property
    def digest(self) -> str:
        """The extractor's."""
        return self.extractor.digest

    def features(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) uint8 grey levels of the set -> (N, dims) float32."""
        return extract(self.extractor, (self.data.to_8bit(part) for part in torch.split(pixels, self.batch)))

    def reference(self, split: str, count: int | None = None, flips: bool = False) -> Reference:
        """`count` images of a split, evenly spread, default all; flips: each mirrored as well.

        Raises ConfigError if it has fewer.
        """
        key = (split, count, flips)
        if key not in self._read:
            self._read[key] = self._reference(*key)
        return self._read[key]

    def _reference(self, split: str, count: int | None, flips: bool) -> Reference:
        images: Images = getattr(self.data, split)
        there = len(images.pixels)
        if count is not None and count > there:
            raise ConfigError(
                f"metrics: {count} images are more than the {there} {split} images of {self.data.name}: lower it"
            )
        chosen = torch.arange(count or there) * there // (count or there)
        pixels = images.pixels[chosen]
        card = {
            "data": self.data.name,
            "split": split,
            "images": len(chosen),
            "flips": flips,
            "channels": self.data.channels,
            "resolution": self.data.resolution,
            "resize": getattr(self.data, "resize", None),
            "pixels_sha256": digest(pixels),
            "extractor": f"{self.extractor.name}, {self.extractor.dims} dims",
            "extractor_sha256": self.digest,
        }
        key = digest(json.dumps(card).encode())

        def write(file: IO[bytes]) -> None:
            features = self.features(torch.cat([pixels, pixels.flip(-1)]) if flips else pixels)
            statistics = FeatureStatistics.from_features(features)
            words = np.array(json.dumps(card))
            mean, covariance = statistics.mean.numpy(), statistics.covariance.numpy()
            np.savez(file, mu=mean, sigma=covariance, count=len(features), card=words, features=features.numpy())

        def read(file: Path) -> Reference:
            with np.load(file, allow_pickle=False) as fields:
                mean, covariance, features = (torch.from_numpy(fields[name]) for name in ("mu", "sigma", "features"))
            return Reference(features, FeatureStatistics.from_moments(mean, covariance, len(features)), chosen, card)

        return cached(f"reference-{key}.npz", write, read)


def fitted_classifier(data: ImageData) -> Classifier:
    """Of the training images, on the host: fitted, in seconds, when it is first asked for.

    Raises ConfigError if the data set has no labels.
    """
    if not data.classes or data.train.labels is None:
        raise ConfigError(
            f"metrics=fd: {data.name} has no labels for the classifier in whose features samples are measured: "
            "use metrics=fid, or ~metrics for none"
        )
    train, labels = data.train, data.train.labels
    shape = (data.channels, data.resolution, data.classes)
    made_by = Path(classifier_code.__file__).read_bytes()  # other code fits another classifier
    key = digest(made_by, f"{torch.__version__} {shape} {data.levels}".encode(), train.pixels, labels)

    def write(file: IO[bytes]) -> None:
        torch.save(fit_classifier(data.to_8bit(train.pixels), labels, data.classes).state_dict(), file)

    def read(file: Path) -> Classifier:
        fitted = Classifier(*shape)
        fitted.load_state_dict(torch.load(file, weights_only=True))
        return fitted.eval().requires_grad_(False)

    return cached(f"classifier-{key}.pt", write, read)


T = TypeVar("T")


def cached(name: str, write: Callable[[IO[bytes]], None], read: Callable[[Path], T]) -> T:
    """What a file of the cache holds; where it is not there, or damaged, it is made again.

    Raises ConfigError if it cannot be written.
    """
    file = Path(os.environ.get("NOISING_CACHE") or platformdirs.user_cache_path("noising")) / name
    with suppress(Exception):
        return read(file)
    mine = file.with_name(f"{name}.{os.getpid()}")  # several jobs of a sweep may make it at once
    try:
        with replacing(mine) as target:
            write(target)
        os.replace(mine, file)
    except OSError as error:
        raise ConfigError(
            f"cannot write {file} ({error.strerror}): set NOISING_CACHE to a folder that can be"
        ) from error
    return read(file)


def digest(*parts: bytes | Tensor) -> str:
    """32 hexadecimal digits that tell the bytes and the tensors' shapes and contents."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
    return sha.hexdigest()[:32]
