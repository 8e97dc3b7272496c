"""How good drawn images are: their distance from the training images, and whether they show what was asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from noising.configuration import ConfigError
from noising.metrics import frechet_distance
from noising.training.references import References

__all__ = ["SampleQuality"]

MOST = 2000
"""Samples of a repeat, unless more are asked for."""


class SampleQuality:
    """Fréchet distance (FD) in the classifier's features, to as many training images as there are samples a repeat.

    Its bias goes as 1/n, so that distances compare only at equal counts; the yardstick is the same distance of as
    many test images.
    """

    def __init__(self, references: References, count: int | None, repeats: int) -> None:
        """count: samples of a repeat, None for as many as there are test images, at most 2,000.

        Raises ConfigError if there are fewer real images than that, or fewer than a distance needs.
        """
        least = references.classifier.dims + 1
        available = min(len(images.pixels) for images in (references.data.train, references.data.test))
        self.count = min(available, MOST) if count is None else count
        if self.count < least:
            raise ConfigError(
                f"n={self.count}: a Fréchet distance of {least - 1} features needs at least {least} samples"
            )
        self.references = references
        self.repeats = repeats
        self.real = references.statistics("train", self.count)
        self.yardstick = frechet_distance(references.statistics("test", self.count), self.real)

    @property
    def card(self) -> dict[str, Any]:
        """What the numbers depend on, besides the samples."""
        return self.references.card(self.count)

    def measure(self, pixels: Tensor, asked: Tensor | None) -> dict[str, float]:
        """Numbers and their standard errors by name; pixels: (repeats · count, C, H, W) uint8 grey levels."""
        distances = torch.tensor(
            [
                frechet_distance(self.references.statistics_of(part), self.real)
                for part in torch.split(pixels, self.count)
            ]
        )
        numbers = {"fd": float(distances.mean()), "fd_baseline": self.yardstick}
        if self.repeats > 1:
            numbers["fd_mc_se"] = float(distances.std()) / math.sqrt(self.repeats)
        if asked is not None:
            rate, count = self._accuracy(pixels, asked), len(asked)
            seen = (rate * count + 1) / (count + 2)  # of the posterior after a uniform prior: not 0 where all are right
            numbers |= {"class_accuracy": rate, "class_accuracy_mc_se": math.sqrt(seen * (1 - seen) / (count + 3))}
            test = self.references.data.test
            assert test.labels is not None
            numbers["class_accuracy_baseline"] = self._accuracy(test.pixels, test.labels)
        return numbers

    def _accuracy(self, pixels: Tensor, labels: Tensor) -> float:
        """The part of the images in which the classifier sees the class they are of."""
        classifier = self.references.classifier
        seen = torch.cat([classifier.logits(part).argmax(1) for part in torch.split(pixels, 500)])
        return float((seen == labels).double().mean())
