"""What drawn images are held against: a classifier of the data set, and the statistics of its features of real images.

Both depend on the data set alone. They are made once and kept in a cache folder: NOISING_CACHE, or the user's own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import torch
from torch import Tensor

from noising.configuration import ConfigError
from noising.data.image_data import ImageData
from noising.metrics import FeatureStatistics, feature_statistics
from noising.metrics import classifier as classifier_code
from noising.metrics.classifier import Classifier, fit_classifier
from noising.training.run import replacing

__all__ = ["References"]

BATCH = 500
"""Images whose features are extracted at once."""

Kept = TypeVar("Kept")


class References:
    """Of one data set. Raises ConfigError if it has no labels, or if the cache folder cannot be written."""

    def __init__(self, data: ImageData) -> None:
        if not data.classes:
            raise ConfigError(
                f"{data.name} has no labels for the classifier by whose features samples are measured: without "
                "sampler=... the bound is"
            )
        self.data = data
        self.folder = Path(os.environ.get("NOISING_CACHE") or platformdirs.user_cache_path("noising"))

    @cached_property
    def classifier(self) -> Classifier:
        """Of the training images, on the host: fitted, in seconds, when it is first asked for."""
        data, train = self.data, self.data.train
        assert train.labels is not None
        shape = (data.channels, data.resolution, data.levels, data.classes)
        made_by = Path(classifier_code.__file__).read_bytes()  # other code fits another classifier
        key = _digest(made_by, f"{torch.__version__} {shape}".encode(), train.pixels, train.labels)

        def write(file: Any) -> None:
            torch.save(fit_classifier(train.pixels, train.labels, data.levels, data.classes).state_dict(), file)

        def read(file: Path) -> Classifier:
            fitted = Classifier(*shape)
            fitted.load_state_dict(torch.load(file, weights_only=True))
            return fitted.eval().requires_grad_(False)

        return self._kept(f"classifier-{key}.pt", write, read)

    def statistics(self, split: str, count: int) -> FeatureStatistics:
        """Of `count` images of a split, evenly spread. Raises ConfigError if it has fewer."""
        pixels: Tensor = getattr(self.data, split).pixels
        if count > len(pixels):
            raise ConfigError(f"n={count} is more than the {len(pixels)} {split} images of {self.data.name}: lower it")
        chosen = pixels[torch.arange(count) * len(pixels) // count]
        key = _digest(self.classifier.digest.encode(), chosen)
        return self._kept(
            f"statistics-{key}.npz", lambda file: self.statistics_of(chosen).save(file), FeatureStatistics.load
        )

    def statistics_of(self, pixels: Tensor) -> FeatureStatistics:
        """Of images, (N, C, H, W) uint8 grey levels."""
        return feature_statistics(self.classifier, torch.split(pixels, BATCH))

    def card(self, count: int) -> dict[str, Any]:
        """What a distance to `count` training images depends on, besides the images measured."""
        return {
            "features": f"{self.classifier.name} of {self.data.name}, {self.classifier.dims} dims",
            "extractor_sha256": self.classifier.digest,
            "reference": f"{count} training images of {self.data.name}, evenly spread, none mirrored",
            "rounding": f"grey levels 0..{self.data.levels - 1}",
            "torch": torch.__version__,
        }

    def _kept(self, name: str, write: Callable[[Any], None], read: Callable[[Path], Kept]) -> Kept:
        """What a file of the cache holds; where it is not there, or damaged, it is made again."""
        file = self.folder / name
        with suppress(Exception):
            return read(file)
        mine = file.with_name(f"{name}.{os.getpid()}")  # several jobs of a sweep may make it at once
        try:
            with replacing(mine) as target:
                write(target)
            os.replace(mine, file)
        except OSError as error:
            raise ConfigError(f"cannot write {file} ({error.strerror}): set NOISING_CACHE to another folder") from error
        return read(file)


def _digest(*parts: bytes | Tensor) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
    return sha.hexdigest()[:32]
