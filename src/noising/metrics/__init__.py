"""How far generated images are from real ones, by the features that a network sees in them; no Lightning, no Hydra."""

from __future__ import annotations

from noising.metrics.classifier import Classifier, fit_classifier
from noising.metrics.extractors import FeatureExtractor, extract, feature_statistics
from noising.metrics.statistics import FeatureStatistics, frechet_distance

__all__ = [
    "Classifier",
    "FeatureExtractor",
    "FeatureStatistics",
    "extract",
    "feature_statistics",
    "fit_classifier",
    "frechet_distance",
]
