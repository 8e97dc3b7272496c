"""Metrics of samples: what real images, copies, noise and mirror images get."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.metrics.measurement import FeatureQuality
from noising.metrics.quality import ClassifierDistance
from noising.metrics.statistics import write_statistics
from tests.metrics.helpers import spread


def test_real_images_show_what_they_are(digits: ImageData) -> None:
    quality = FeatureQuality(ClassifierDistance(repeats=1), digits)
    assert quality.count == 360
    test, labels = digits.test
    assert labels is not None
    seen = quality.references.features(test)
    right = quality.evaluate(seen, labels)
    for name in ("fd", "kd", "precision", "recall", "density", "coverage", "memorized", "class_accuracy"):
        assert right[name] == pytest.approx(right[f"{name}_baseline"]), name
    assert "fd_mc_se" not in right
    assert right["class_accuracy"] > 0.95
    wrong = quality.evaluate(seen, (labels + 1) % 10)
    assert wrong["class_accuracy"] < 0.05
    assert wrong["class_accuracy_mc_se"] < 0.02
    noise = torch.randint(0, 17, test.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noisy = quality.evaluate(quality.references.features(noise), None)
    assert noisy["fd"] > 10 * right["fd"]
    assert noisy["precision"] < 0.1


def test_copies_of_training_images_are_found(digits: ImageData) -> None:
    quality = FeatureQuality(ClassifierDistance(repeats=1), digits)
    copied = torch.arange(0, 1309, 3)[:360]
    found = quality.evaluate(quality.references.features(digits.train.pixels[copied]), None)
    assert found["memorized"] == 1
    mixed = torch.cat([digits.test.pixels[:300], digits.train.pixels[:60]])
    nearest = quality.nearest_to_training(quality.references.features(mixed), mixed)
    assert set(nearest.samples.tolist()) <= set(range(300, 360))
    assert torch.equal(nearest.images, digits.to_8bit(mixed[nearest.samples]))
    assert torch.equal(nearest.neighbours[:, 0], nearest.images)


def test_repeats_are_averaged_and_never_picked_from(digits: ImageData) -> None:
    twice, once = (FeatureQuality(ClassifierDistance(n=100, repeats=repeats), digits) for repeats in (2, 1))
    features = twice.references.features(digits.test.pixels[:200])
    both, one, other = twice.evaluate(features, None), *(once.evaluate(f, None) for f in features.split(100))
    assert both["fd"] == pytest.approx((one["fd"] + other["fd"]) / 2)
    assert both["fd_mc_se"] == pytest.approx(abs(one["fd"] - other["fd"]) / 2)


def test_mirrored_images_and_statistics_from_elsewhere(digits: ImageData, tmp_path: Path) -> None:
    plain, flipped = (FeatureQuality(ClassifierDistance(n=100, flips=flips), digits) for flips in (False, True))
    assert (plain.real.statistics.count, flipped.real.statistics.count) == (100, 200)
    both = torch.cat([spread(digits.train.pixels, 100), spread(digits.train.pixels, 100).flip(-1)])
    torch.testing.assert_close(flipped.real.features, plain.references.features(both))
    features = plain.references.features(digits.test.pixels[:300])
    target = tmp_path / "real.npz"
    with open(target, "wb") as file:
        write_statistics(file, ".npz", flipped.real.statistics, flipped.real.card)
    elsewhere = FeatureQuality(ClassifierDistance(n=100, reference=str(target)), digits)
    assert elsewhere.evaluate(features, None)["fd"] == pytest.approx(flipped.evaluate(features, None)["fd"])
    assert elsewhere.card["reference"]["flips"] is True
    for change, words in (({"resolution": 9}, "resolution 9, where digits has 8"), ({"channels": 3}, "channels 3")):
        with open(target, "wb") as file:
            write_statistics(file, ".npz", flipped.real.statistics, {**flipped.real.card, **change})
        with pytest.raises(ConfigError, match=words):
            FeatureQuality(ClassifierDistance(n=100, reference=str(target)), digits)
