"""A mean over images of what each image gives only by independent noisy replicates, with its two standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.special import stdtrit
from torch import Tensor

__all__ = ["ReplicatedMean", "replicated_mean"]


class ReplicatedMean(NamedTuple):
    """The mean, and the standard errors that add up in the square."""

    mean: float
    mc_se: float
    """Of the draws: the variance within images."""
    image_se: float
    """Of which images there are: the variance between them, without what the draws put there; at least 0."""
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% for the mean over all images like these: both errors, and Student's t of N − 1 degrees of freedom."""
        half = float(stdtrit(self.images - 1, 0.975)) * math.hypot(self.mc_se, self.image_se)
        return self.mean - half, self.mean + half


def replicated_mean(values: Tensor) -> ReplicatedMean:
    """values: (N, R) float64 of N images in R replicates; a standard error that cannot be told is nan."""
    images, replicates = values.shape
    mean = float(values.mean())
    draws = float(values.var(1).mean()) / replicates if replicates > 1 else math.nan
    between = float(values.mean(1).var()) - draws if images > 1 else math.nan
    clipped = max(between, 0.0) if math.isfinite(between) else math.nan
    return ReplicatedMean(mean, math.sqrt(draws / images), math.sqrt(clipped / images), images)
