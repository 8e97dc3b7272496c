"""Metrics of samples: what real images, copies, noise and mirror images get."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import scipy.stats
import torch
from torch import Tensor
from torchmetrics import CatMetric
from torchmetrics.image import KernelInceptionDistance

from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.metrics.measurement import DrawnSamples, FeatureQuality, SampleQuality, sample_quality
from noising.metrics.quality import ClassifierDistance, ImageMetric
from noising.metrics.statistics import write_statistics
from noising.runs.declarations import Declaration
from tests.metrics.helpers import Brightness, Pixels, spread


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


@pytest.mark.parametrize("right", [0, 7, 99, 100])
def test_the_error_of_an_accuracy_is_that_of_its_posterior(right: int, digits: ImageData) -> None:
    quality = FeatureQuality(ClassifierDistance(n=100, repeats=1), digits)
    features = quality.references.features(digits.test.pixels[:100])
    logits = quality.references.extractor.class_logits(features)
    assert logits is not None
    found = logits.argmax(1)
    labels = torch.where(torch.arange(100) < right, found, (found + 1) % 10)
    numbers = quality.evaluate(features, labels)
    assert numbers["class_accuracy"] == pytest.approx(right / 100)
    expected = scipy.stats.beta(right + 1, 100 - right + 1).std()
    assert numbers["class_accuracy_mc_se"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"n": 64}, "needs at least 65 samples"),
        ({"n": 65}, None),
        ({"n": 65, "real": 64}, "65 features of real images, or 65 images"),
        ({"n": 65, "real": 65}, None),
        ({"n": 65, "real": 32, "flips": True}, "or 33 images"),
        ({"n": 65, "real": 33, "flips": True}, None),
    ],
)
def test_a_covariance_needs_one_image_more_than_features(
    options: dict[str, Any], refused: str | None, digits: ImageData
) -> None:
    metric = ClassifierDistance(repeats=1, **options)
    if refused is None:
        assert FeatureQuality(metric, digits).count == 65
    else:
        with pytest.raises(ConfigError, match=refused):
            FeatureQuality(metric, digits)


def test_a_validation_measures_one_repeat(digits: ImageData) -> None:
    quality = FeatureQuality(ClassifierDistance(n=100, repeats=3), digits)
    assert [(q.count, q.repeats) for q in (quality.for_validation(None), quality.for_validation(80))] == [
        (100, 1),
        (80, 1),
    ]


def test_the_first_rank_alone_measures(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    quality = FeatureQuality(ClassifierDistance(n=100, repeats=1), digits)
    for rank, names in ((0, True), (1, False), (2, False)):
        monkeypatch.setattr("noising.metrics.measurement._rank", lambda rank=rank: rank)
        quality.begin("cpu")
        quality.update(range(100), digits.test.pixels[:100], torch.ones(100, dtype=torch.bool))
        assert bool(quality.compute(None)) == names


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


def test_nearness_is_relative_to_the_training_images_own_nearest(digits: ImageData) -> None:
    """Distances by brute force, in float64; eight samples are shown, the nearest first."""
    quality = FeatureQuality(ClassifierDistance(n=100, repeats=1), digits)
    pixels = digits.test.pixels[:100]
    seen, known = (quality.references.features(p).double() for p in (pixels, digits.train.pixels))
    among = torch.cdist(known, known).fill_diagonal_(torch.inf).amin(1)
    distance, closest = torch.cdist(seen, known).min(1)
    expected = (distance / among[closest]).sort()
    found = quality.nearest_to_training(seen.float(), pixels)
    assert found.samples.tolist() == expected.indices[:8].tolist()
    torch.testing.assert_close(found.nearness.double(), expected.values[:8], rtol=1e-4, atol=0)


def test_samples_come_back_in_the_order_of_their_indices() -> None:
    gathered = DrawnSamples((1, 2, 2), 3)
    pixels, features = torch.arange(20).reshape(5, 1, 2, 2).byte(), torch.randn(5, 3)
    for part in (torch.tensor([3, 1]), torch.tensor([4, 0, 2])):
        gathered.update(part, pixels[part], features[part], part != 4)
    found = gathered.compute()
    assert torch.equal(found[0], pixels)
    assert torch.equal(found[1], features)
    assert found[2] == 1


def test_repeats_are_averaged_and_never_picked_from(digits: ImageData) -> None:
    twice, once = (FeatureQuality(ClassifierDistance(n=100, repeats=repeats), digits) for repeats in (2, 1))
    assert (twice.total, once.total) == (200, 100)
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
    for change, words in (({"resolution": 9}, "resolution 9, but digits has 8"), ({"channels": 3}, "channels 3")):
        with open(target, "wb") as file:
            write_statistics(file, ".npz", flipped.real.statistics, {**flipped.real.card, **change})
        with pytest.raises(ConfigError, match=words):
            FeatureQuality(ClassifierDistance(n=100, reference=str(target)), digits)


class Parts(Brightness):
    """Numbers by name, of which the first is declared."""

    higher_is_better = None
    declared: ClassVar = {"left": Declaration("brightness of the left half", "grey levels", "lower")}

    def compute(self) -> Any:
        return {"left": super().compute(), "right": (torch.tensor(1.0), torch.tensor(0.5))}


def measured(quality: SampleQuality, pixels: Tensor, batch: int) -> dict[str, float]:
    """Given in batches, the last first."""
    quality.begin("cpu")
    for index in reversed([range(first, min(first + batch, len(pixels))) for first in range(0, len(pixels), batch)]):
        part = pixels[index.start : index.stop]
        quality.update(index, part, torch.ones(len(part), dtype=torch.bool))
    return quality.compute(None)


def test_any_metric_of_images_measures_samples(digits: ImageData) -> None:
    quality = sample_quality(Brightness(), digits)
    assert (quality.count, quality.total) == (360, 360)
    assert quality.declared == {"brightness": Declaration("brightness", better="higher")}
    samples = digits.train.pixels[:360]
    found = measured(quality, samples, batch=100)
    assert found["brightness"] == pytest.approx(float(digits.to_8bit(samples).double().mean()), rel=1e-12)
    real = digits.to_8bit(digits.test.pixels)
    assert found["brightness_baseline"] == pytest.approx(float(real.double().mean()), rel=1e-12)
    assert quality.neighbours() is None
    assert quality.card["metric"] == "tests.metrics.helpers.Brightness"
    fewer = quality.for_validation(20)
    assert (fewer.count, quality.for_validation(None)) == (20, quality)


def test_a_metric_of_real_images_too_is_given_them(digits: ImageData) -> None:
    """torchmetrics' kernel distance over one subset of all samples, against its own formula in float64."""
    kernel = KernelInceptionDistance(feature=Pixels(), subsets=1, subset_size=360)
    quality = sample_quality(kernel, digits)
    samples = digits.test.pixels[:360]
    found = measured(quality, samples, batch=77)
    x, y = (Pixels()(digits.to_8bit(images)) for images in (spread(digits.train.pixels, 360), samples))
    (xx, yy, xy), n, d = ((a @ b.T / x.shape[1] + 1 for a, b in ((x, x), (y, y), (x, y))), 360, x.shape[1])
    within = sum(float((k**3).sum() - (k**3).diagonal().sum()) for k in (xx, yy)) / (n * (n - 1))
    assert found["kernel_inception_distance"] == pytest.approx(within - 2 * float((xy**3).mean()), rel=1e-5)
    assert list(found) == [f"kernel_inception_distance{end}" for end in ("", "_std", "_baseline", "_std_baseline")]
    declared = quality.declared["kernel_inception_distance"]
    assert (declared.better, declared.shown, d) == ("lower", True, 64)
    assert quality.declared["kernel_inception_distance_std"].shown is False
    assert quality.card["reference"] == {"data": "digits", "split": "train", "images": 360}


def test_its_card_holds_its_options(digits: ImageData) -> None:
    options = {"_target_": "mine.Brightness", "power": 2, "feature": {"_target_": "mine.Net", "scale": 10}}
    for metric, given in ((Brightness(), options), (ImageMetric(Brightness()), {"metric": options, "n": None})):
        assert sample_quality(metric, digits, given).card["options"] == options


class Taken(Brightness):
    declared: ClassVar = {"bound": Declaration("mine")}


class Fd(Brightness):
    """Its name is that of another metric's number."""


class Odd(ClassifierDistance):
    distance = "my distance/x"


class Method(ClassifierDistance):
    def distance(self) -> str:  # type: ignore[override]
        return "fd"


@pytest.mark.parametrize(
    ("metric", "blamed"),
    [
        (Taken, "metrics: another number is named bound"),
        (Fd, "metrics: another number is named fd"),
        (Odd, "metrics: 'my distance/x' cannot name a number"),
        (Method, "Method.distance must be a name, a string in the class"),
    ],
)
def test_a_name_is_one_number_s(metric: type, blamed: str, digits: ImageData) -> None:
    with pytest.raises(ValueError, match=blamed):
        sample_quality(metric(), digits, {}, {"bound", "loss"})


def test_its_draws_are_its_own(digits: ImageData) -> None:
    quality = sample_quality(KernelInceptionDistance(feature=Pixels(), subsets=2, subset_size=50), digits)
    before = torch.random.get_rng_state()
    one, again = (measured(quality, digits.train.pixels[:360], batch) for batch in (360, 50))
    assert one == again
    assert torch.equal(torch.random.get_rng_state(), before)


def test_numbers_by_name_and_declared(digits: ImageData) -> None:
    quality = sample_quality(ImageMetric(Parts(), n=30), digits)
    found = measured(quality, digits.train.pixels[:30], batch=30)
    assert (found["right"], found["right_std"]) == (1.0, 0.5)
    assert quality.declared["left"].title == "brightness of the left half"
    assert quality.declared["right"] == Declaration("right", shown=False)


@pytest.mark.parametrize(
    ("metric", "blamed"),
    [
        (
            KernelInceptionDistance(feature=Pixels(), subset_size=1000),
            "cannot measure 360 images of digits: Argument `su",
        ),
        (KernelInceptionDistance(feature=Pixels(), normalize=True), "normalize=true expects images in"),
        (CatMetric(), "it computes a tensor of shape"),
        (torch.nn.Identity(), "expected a QualityMetric or a torchmetrics.Metric, got Identity"),
    ],
)
def test_what_cannot_measure_is_refused_before_any_work(metric: object, blamed: str, digits: ImageData) -> None:
    with pytest.raises(ConfigError, match=blamed):
        sample_quality(metric, digits)
