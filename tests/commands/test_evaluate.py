"""The quality of samples by sampler, against a computation of its own; a sweep of it; what is kept and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from PIL import Image

from noising.commands.sample_jobs import SampleJob
from noising.data.image_data import ImageData
from noising.metrics import reference_features as references
from noising.metrics.classifier import Classifier
from noising.metrics.extractors import Inception
from noising.metrics.reference_features import fitted_classifier
from noising.metrics.statistics import frechet_distance
from noising.plots.likelihood import read_bins
from noising.runs.folder import Run
from tests.helpers import Command, read_table, run_script
from tests.metrics.helpers import feature_statistics, spread

FEW = ["metrics.n=70", "metrics.repeats=2", "batch_size=70", "device=cpu"]


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


def test_a_sweep_of_samplers(trained: Path, digits: ImageData, noising: Command, tmp_path: Path) -> None:
    sweep = ("-m", f"checkpoint={trained}", "sampler=ddim,heun", "sampler.steps=2,4", *FEW, "hydra.sweep.dir=sweep")
    outcome = noising("evaluate", *sweep)
    assert outcome.code == 0, outcome.err
    table = read_table(tmp_path / "sweep" / "sweep.csv")
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
    assert [row["status"] for row in read_table(table)] == ["finished", "finished"]
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
        (["metrics.n=1400"], "metrics: 1400 images are more than the 1309 train images of digits: use fewer"),
        (["metrics.n=64"], "metrics.n=64: a Fréchet distance of 64 features needs at least 65 samples"),
        (["metrics.n=some"], "metrics.n"),
        (["metrics.repeats=0"], "metrics: repeats must be a whole number from 1 to "),
        (["metrics.real=some"], "metrics: real must be null (as many as n), all, or a number"),
        (["metrics.split=night"], "metrics: split must be one of test, train, val, got night"),
        (["metrics.reference=none.npz"], "metrics: reference=none.npz: there is no such file"),
        (["metrics=fid", "metrics.inception_weights=none"], "metrics: inception_weights=none: there is no such file"),
        (["~metrics"], "choose a metric"),
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


def test_evaluate_measures_again_what_the_run_measured(trained: Path, noising: Command, tmp_path: Path) -> None:
    outcome = noising(
        "evaluate",
        f"checkpoint={trained}",
        "bound=stratified",
        "bound.times=8",
        "hydra.run.dir=again",
        "trainer.accelerator=cpu",
    )
    assert outcome.code == 0, outcome.err
    assert "bound on -log p(x)" in outcome.out
    before, after = Run(trained).summary, Run(tmp_path / "again").summary
    for name in ("test/bound", "test/bound_mc_se", "test/prior", "test/decoder"):
        assert after[name] == before[name]
    assert after["cards"]["test/bound"]["step"] == 20


@pytest.mark.usefixtures("figures")
def test_evaluate_shows_the_gap_between_splits(trained: Path, noising: Command, tmp_path: Path) -> None:
    """The default evaluation: adaptive, as sure as it was asked to be, of test and training images."""
    outcome = noising("evaluate", f"checkpoint={trained}", "bound.stderr=0.02", "hydra.run.dir=both")
    assert outcome.code == 0, outcome.err
    run = Run(tmp_path / "both")
    for split, images in (("test", 360), ("train", 1309)):
        assert run.summary[f"{split}/bound_mc_se"] == pytest.approx(0.02, rel=0.6)
        card = run.summary["cards"][f"{split}/bound"]
        assert (card["images"], card["estimator"], card["stderr"]) == (images, "Adaptive", 0.02)
        assert card["evaluations"] < 1000 * images / 20
        assert f"{card['evaluations']:,} network evaluations" in outcome.out
    # the exact terms agree with the run's own
    assert run.summary["test/prior"] == Run(trained).summary["test/prior"]
    assert {row.split for row in read_bins(run.bound_by_step)} == {"test", "train"}
    for figure in (run.bound_by_step_figure, run.bound_by_log_snr_figure, run.rate_distortion_figure):
        assert figure.stat().st_size > 5000
    refused = noising("evaluate", f"checkpoint={trained}", "splits=[night]")
    assert (refused.code, refused.err.count("\n")) == (2, 1)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(trained: Path, noising: Command, tmp_path: Path) -> None:
    """The plan is one, whoever makes its draws: equal to rounding, and every image counts once."""
    options = [f"checkpoint={trained}", "bound.stderr=0.3", "trainer.accelerator=cpu"]
    outcome = run_script("scripts/evaluate.py", tmp_path, *options, "trainer.devices=2", "hydra.run.dir=two")
    assert outcome.code == 0, outcome.err
    assert noising("evaluate", *options, "hydra.run.dir=one").code == 0
    one, two = (Run(tmp_path / name).summary for name in ("one", "two"))
    for split in ("test", "train"):
        for name in ("bound", "bound_mc_se", "bound_image_se", "prior", "steps", "decoder"):
            assert two[f"{split}/{name}"] == pytest.approx(one[f"{split}/{name}"], rel=1e-5, abs=1e-12)
        cards = [summary["cards"][f"{split}/bound"] for summary in (one, two)]
        assert cards[0]["images"] == cards[1]["images"]
        assert cards[0]["evaluations"] == cards[1]["evaluations"]
