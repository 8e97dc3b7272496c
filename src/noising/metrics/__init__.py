"""Distances between generated and real images in the features of a network; without Lightning and Hydra."""

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
