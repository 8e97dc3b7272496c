"""The quality of samples by sampler, against a computation of its own; a sweep of it; what is kept and gone on with."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from PIL import Image

import noising as package
from noising.commands.sample_jobs import SampleJob
from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.metrics import reference_features as references
from noising.metrics.classifier import Classifier
from noising.metrics.extractors import Inception, feature_statistics
from noising.metrics.quality import ClassifierDistance, SampleQuality
from noising.metrics.reference_features import ReferenceFeatures, fitted_classifier
from noising.metrics.statistics import frechet_distance, write_statistics
from noising.plots.sweep import draw, series
from noising.runs.folder import Run
from noising.runs.rows import Row
from tests.conftest import Outcome

Command = Callable[..., Outcome]

FEW = ["metrics.n=70", "metrics.repeats=2", "batch_size=70", "device=cpu"]


@pytest.fixture(scope="module")
def digits(trained: Path) -> ImageData:
    return package.load(trained).data


def eight_bits(digits: torch.Tensor) -> torch.Tensor:
    return (digits.double() * 255 / 16).round().to(torch.uint8)


def distance(classifier: Classifier, a: torch.Tensor, b: torch.Tensor) -> float:
    """Heusel et al. (2017), equation 6, by scipy's square root; of 17 grey levels."""
    with torch.no_grad():
        features: list[NDArray[np.float64]] = [classifier(eight_bits(x)).double().numpy() for x in (a, b)]
    mean = [f.mean(0) for f in features]
    covariance = [np.cov(f.T) for f in features]
    root = scipy.linalg.sqrtm(covariance[0] @ covariance[1]).real
    return float(((mean[0] - mean[1]) ** 2).sum() + np.trace(covariance[0] + covariance[1] - 2 * root))


def spread(pixels: torch.Tensor, count: int) -> torch.Tensor:
    return pixels[[i * len(pixels) // count for i in range(count)]]


def test_a_sweep_of_samplers(trained: Path, digits: ImageData, noising: Command, tmp_path: Path) -> None:
    sweep = ("-m", f"checkpoint={trained}", "sampler=ddim,heun", "sampler.steps=2,4", *FEW, "hydra.sweep.dir=sweep")
    outcome = noising("evaluate", *sweep)
    assert outcome.code == 0, outcome.err
    with open(tmp_path / "sweep" / "sweep.csv") as file:
        table = list(csv.DictReader(file))
    seen = [(row["sampler"], row["sampler.steps"], int(row["test/evaluations_per_image"])) for row in table]
    assert seen == [("ddim", "2", 2), ("ddim", "4", 4), ("heun", "2", 2), ("heun", "4", 6)]
    with Image.open(tmp_path / "sweep" / "quality.png") as figure:
        assert figure.size[0] > 1000
    # the second job, from the images that `sample` draws
    job = tmp_path / "sweep" / table[1]["folder"]
    assert not (job / "shards").exists()
    drawing = ("sampler=ddim", "sampler.steps=4", "n=140", "batch_size=70", "device=cpu", "hydra.run.dir=drawn")
    assert noising("sample", f"checkpoint={trained}", *drawing).code == 0
    drawn = np.load(tmp_path / "drawn" / "samples.npz")["arr_0"].astype(np.float64) * 16 / 255
    pixels = torch.from_numpy(drawn.round().astype(np.uint8)).permute(0, 3, 1, 2)
    classifier, train = fitted_classifier(digits), spread(digits.train.pixels, 70)
    distances = [distance(classifier, part, train) for part in (pixels[:70], pixels[70:])]
    summary = Run(job).summary
    assert summary["test/fd"] == pytest.approx(np.mean(distances), rel=1e-4)
    assert summary["test/fd_mc_se"] == pytest.approx(abs(distances[0] - distances[1]) / 2, rel=1e-3)
    assert summary["test/fd_baseline"] == pytest.approx(
        distance(classifier, spread(digits.test.pixels, 70), train), rel=1e-4
    )
    assert 0 < summary["test/seconds_per_image"] < 1
    card = summary["cards"]["test/fd"]
    expected = {"samples": 70, "repeats": 2, "seed": 0, "extractor_sha256": classifier.digest, "class_label": None}
    assert {name: card[name] for name in expected} == expected
    assert card["sampler"]["steps"] == 4


def test_fid_by_a_file_of_weights(
    trained: Path, digits: ImageData, inception_weights: Path, noising: Command, tmp_path: Path
) -> None:
    drawing = (f"checkpoint={trained}", "sampler=ddim", "sampler.steps=2", "batch_size=66", "device=cpu")
    few = ("metrics=fid", f"metrics.inception_weights={inception_weights}", "metrics.layer=64", "metrics.n=66")
    outcome = noising("evaluate", *drawing, *few, "metrics.real=66", "hydra.run.dir=measured")
    assert outcome.code == 0, outcome.err
    assert "Fréchet Inception distance (FID)" in outcome.out
    summary = Run(tmp_path / "measured").summary
    assert {"test/fid", "test/kid", "test/precision", "test/coverage", "test/memorized"} <= set(summary)
    assert not {"test/fd", "test/inception_score", "test/class_accuracy"} & set(summary)
    assert noising("sample", *drawing, "n=66", "hydra.run.dir=drawn").code == 0
    drawn = torch.from_numpy(np.load(tmp_path / "drawn" / "samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    extractor = Inception(str(inception_weights), layer=64)
    pair = (drawn, eight_bits(spread(digits.train.pixels, 66)))
    expected = frechet_distance(*(feature_statistics(extractor, [pixels]) for pixels in pair))
    assert summary["test/fid"] == pytest.approx(expected, rel=1e-3)
    card = summary["cards"]["test/fid"]
    assert card["extractor_sha256"] == extractor.digest
    assert card["reference"]["images"] == 66


def test_a_sweep_goes_on_where_it_stopped(
    trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, range]] = []
    draw = SampleJob.draw

    def two_batches(self: SampleJob, batch: range, *args: object) -> torch.Tensor:
        drawn.append((self.sampler.steps, batch))
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(self, batch, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SampleJob, "draw", two_batches)
    sweep = ("-m", f"checkpoint={trained}", "sampler=ddim", "sampler.steps=2,3", *FEW)
    assert noising("evaluate", *sweep).code == 130
    assert not list(tmp_path.rglob("sweep.csv"))
    monkeypatch.setattr(references, "fit_classifier", None)  # what is real has been seen
    outcome = noising("evaluate", *sweep, "resume=true")
    assert outcome.code == 0, outcome.err
    first, second = range(70), range(70, 140)
    assert drawn == [(2, first), (2, second), (3, first), (3, second), (3, second)]
    (table,) = tmp_path.rglob("sweep.csv")
    with open(table) as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished", "finished"]
    assert (table.parent / "quality.png").exists()
    rows = table.read_text()
    changed = [option.replace("metrics.n=70", "metrics.n=80") for option in sweep]
    for way in (f"resume={table.parent}", f"hydra.sweep.dir={table.parent}"):
        outcome = noising("evaluate", *changed, way, *(["resume=true"] if way.startswith("hydra") else []))
        assert outcome.code == 2
        assert "that sweep was started with other options" in outcome.err
        assert "metrics.n=70, metrics.n=80" in outcome.err
    assert table.read_text() == rows
    jobs = sorted(str(path) for path in table.parent.iterdir() if path.is_dir())
    compared = noising("compare", *jobs, "vary=[sampler]")  # whose names are like options
    assert compared.code == 0, compared.err


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        (["metrics.n=1400"], "metrics: 1400 images are more than the 1309 train images of digits: lower it"),
        (["metrics.n=64"], "metrics.n=64: a Fréchet distance of 64 features needs at least 65 samples"),
        (["metrics.n=some"], "metrics.n"),
        (["metrics.repeats=0"], "metrics: repeats must be a whole number from 1 to "),
        (["metrics.real=some"], "metrics: real must be null (as many as n), all, or a number"),
        (["metrics.split=night"], "metrics: split must be one of test, train, val, got night"),
        (["metrics.reference=none.npz"], "metrics: reference=none.npz: there is no such file"),
        (["metrics=fid", "metrics.inception_weights=none"], "metrics: inception_weights=none: there is no such file"),
        (["~metrics"], "choose one"),
        (["guidance=classifier_free"], "guidance changes samples, not the bound"),
        (["sampler=dimm"], "did you mean ddim?"),
    ],
)
def test_a_bad_option_is_one_line(options: list[str], blamed: str, trained: Path, noising: Command) -> None:
    sampler = [] if "guidance=classifier_free" in options else ["sampler=ddim"]
    outcome = noising("evaluate", f"checkpoint={trained}", *sampler, *options)
    assert outcome.code == 2
    assert blamed in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_data_without_labels_is_refused() -> None:
    class Unlabelled:
        name, classes = "patches", 0

    with pytest.raises(ConfigError, match="patches has no labels"):
        fitted_classifier(Unlabelled())  # type: ignore[arg-type]


def test_real_images_show_what_they_are(digits: ImageData) -> None:
    quality = SampleQuality(ClassifierDistance(repeats=1), digits)
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


def test_images_that_are_not_finite_are_no_grey_levels(
    trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*given: Any) -> torch.Tensor:
        images = torch.zeros(70, 1, 8, 8)
        images[3, 0, 4, 4] = torch.nan
        return images

    monkeypatch.setattr("noising.commands.sample_jobs.draw_images", diverged)
    outcome = noising("evaluate", f"checkpoint={trained}", "sampler=ddim", *FEW, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "error: image 3 is not finite" in outcome.err
    assert Run(tmp_path / "run").status == "failed"


def test_copies_of_training_images_are_found(digits: ImageData) -> None:
    quality = SampleQuality(ClassifierDistance(repeats=1), digits)
    copied = torch.arange(0, 1309, 3)[:360]
    found = quality.evaluate(quality.references.features(digits.train.pixels[copied]), None)
    assert found["memorized"] == 1
    mixed = torch.cat([digits.test.pixels[:300], digits.train.pixels[:60]])
    likest = quality.nearest_to_training(quality.references.features(mixed))
    assert set(likest.samples.tolist()) <= set(range(300, 360))
    assert torch.equal(likest.neighbours[:, 0], likest.samples - 300)


def test_repeats_are_averaged_and_never_picked_from(digits: ImageData) -> None:
    twice, once = (SampleQuality(ClassifierDistance(n=100, repeats=repeats), digits) for repeats in (2, 1))
    features = twice.references.features(digits.test.pixels[:200])
    both, one, other = twice.evaluate(features, None), *(once.evaluate(f, None) for f in features.split(100))
    assert both["fd"] == pytest.approx((one["fd"] + other["fd"]) / 2)
    assert both["fd_mc_se"] == pytest.approx(abs(one["fd"] - other["fd"]) / 2)


def test_mirrored_images_and_statistics_from_elsewhere(digits: ImageData, tmp_path: Path) -> None:
    plain, flipped = (SampleQuality(ClassifierDistance(n=100, flips=flips), digits) for flips in (False, True))
    assert (plain.real.statistics.count, flipped.real.statistics.count) == (100, 200)
    both = torch.cat([spread(digits.train.pixels, 100), spread(digits.train.pixels, 100).flip(-1)])
    torch.testing.assert_close(flipped.real.features, plain.references.features(both))
    features = plain.references.features(digits.test.pixels[:300])
    target = tmp_path / "real.npz"
    with open(target, "wb") as file:
        write_statistics(file, ".npz", flipped.real.statistics, flipped.real.card)
    elsewhere = SampleQuality(ClassifierDistance(n=100, reference=str(target)), digits)
    assert elsewhere.evaluate(features, None)["fd"] == pytest.approx(flipped.evaluate(features, None)["fd"])
    assert elsewhere.card["reference"]["flips"] is True
    for change, words in (({"resolution": 9}, "resolution 9, where digits has 8"), ({"channels": 3}, "channels 3")):
        with open(target, "wb") as file:
            write_statistics(file, ".npz", flipped.real.statistics, {**flipped.real.card, **change})
        with pytest.raises(ConfigError, match=words):
            SampleQuality(ClassifierDistance(n=100, reference=str(target)), digits)


def test_a_damaged_cache_is_made_again(digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISING_CACHE", str(tmp_path))
    monkeypatch.setattr(references, "fit_classifier", lambda *given: Classifier(1, 8, 10))

    def made() -> ReferenceFeatures:
        torch.manual_seed(0)
        return ReferenceFeatures(digits, fitted_classifier(digits), 100)

    first = made()
    features = first.reference("test", 100).features
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".pt", ".npz"]
    assert torch.equal(made().reference("test", 100).features, features)
    assert sorted(tmp_path.iterdir()) == files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(made().reference("test", 100).features, features)
    assert made().digest == first.digest


def test_a_cache_that_cannot_be_written_is_named(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NOISING_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(references, "fit_classifier", lambda *given: Classifier(1, 8, 10))
    with pytest.raises(ConfigError, match="set NOISING_CACHE"):
        fitted_classifier(digits)


def row(status: str = "finished", fd: float = 1.0, evaluations: int = 5, **swept: str) -> Row:
    numbers = {"test/fd": fd, "test/evaluations_per_image": evaluations, "test/seconds_per_image": 0.1}
    return {**{name.replace("__", "."): value for name, value in swept.items()}, "status": status, **numbers}


def test_what_stands_on_the_axis(tmp_path: Path) -> None:
    steps = [row(sampler=s, sampler__steps=str(n), evaluations=n) for n in (20, 5) for s in ("ddim", "heun")]
    axis, lines = series(steps)
    assert axis == "test/evaluations_per_image"
    assert {name: [r[axis] for r in line] for name, line in lines.items()} == {"ddim": [5, 20], "heun": [5, 20]}
    scales = [row(checkpoint="A", grid=g, guidance__scale=s) for g in ("karras", "uniform") for s in ("3", "1.5")]
    axis, lines = series(scales)
    assert axis == "guidance.scale"
    assert {name: [r[axis] for r in line] for name, line in lines.items()} == {
        "grid=karras": ["1.5", "3"],
        "grid=uniform": ["1.5", "3"],
    }
    for number, table in enumerate((steps, scales)):
        draw(tmp_path / f"{number}.png", table)
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 10
