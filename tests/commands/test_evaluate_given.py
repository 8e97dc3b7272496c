"""Images of any origin measured as those drawn here are, against the same numbers by hand; each mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from noising.commands.given_samples import GivenSamples
from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.metrics import quality
from noising.metrics.classifier import Classifier
from noising.metrics.reference_features import fitted_classifier
from noising.metrics.statistics import EVALUATOR, FeatureStatistics, frechet_distance
from noising.runs.folder import Run
from tests.helpers import Command, write_images
from tests.metrics.helpers import feature_statistics, spread

FEW = ["metrics.n=70", "metrics.repeats=2", "device=cpu"]
COSTS = ("seconds", "evaluations")


def numbers_of(run: Run) -> dict[str, Any]:
    summary = run.summary
    return {
        name: value
        for name, value in summary.items()
        if name.startswith("test/") and not name.removeprefix("test/").startswith(COSTS)
    }


def test_samples_give_the_numbers_of_the_drawing(
    trained: Path, digits: ImageData, noising: Command, tmp_path: Path
) -> None:
    drawing = (f"checkpoint={trained}", "sampler=ddim", "sampler.steps=2", "batch_size=70", "device=cpu")
    drawn = noising("evaluate", *drawing, *FEW, "hydra.run.dir=drawn")
    assert drawn.code == 0, drawn.err
    assert noising("sample", *drawing, "n=150", "hydra.run.dir=made").code == 0
    given = noising("evaluate", "samples=made/samples.npz", "data=digits", *FEW, "hydra.run.dir=given")
    assert given.code == 0, given.err
    runs = [Run(tmp_path / name) for name in ("drawn", "given")]
    assert numbers_of(runs[0]) == numbers_of(runs[1])
    before, after = (run.summary["cards"]["test/fd"] for run in runs)
    made = {"images_from": "made/samples.npz", "images_there": 150, "sha256": after["sha256"]}
    assert after == made | {name: before[name] for name in after if name not in made}
    table = [line for line in drawn.out.splitlines() if "│" in line]
    assert table == [line for line in given.out.splitlines() if "│" in line]
    assert "2 x 70 samples of made/samples.npz" in given.out
    assert (runs[1].samples_image.exists(), runs[1].status) == (True, "finished")
    # a folder of the same images
    images = np.load(tmp_path / "made" / "samples.npz")["arr_0"][..., 0]
    for number, image in enumerate(images):
        Image.fromarray(image).save(write_images(tmp_path / "folder", []) / f"{number:03}.png")
    of_folder = GivenSamples(str(tmp_path / "folder")).read(digits, 70, 2)
    assert of_folder.card["sha256"] == after["sha256"]
    assert (of_folder.pixels.max(), of_folder.class_labels) == (16, None)


def test_images_of_classes_are_held_to_them(digits: ImageData, noising: Command, tmp_path: Path) -> None:
    """Real test images, of which every other is given the class after its own."""
    images, labels = digits.to_8bit(digits.test.pixels[:100]), digits.test.labels
    assert labels is not None
    asked = (labels[:100] + torch.arange(100) % 2) % 10
    np.savez_compressed(tmp_path / "of.npz", images.permute(0, 2, 3, 1).numpy(), asked.numpy())
    options = ("samples=of.npz", "data=digits", "metrics.n=100", "metrics.repeats=1", "device=cpu")
    outcome = noising("evaluate", *options, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    extractor = fitted_classifier(digits)
    logits = extractor.class_logits(extractor(images))
    assert Run(tmp_path / "run").summary["test/class_accuracy"] == float((logits.argmax(1) == asked).double().mean())


def evaluators_file(path: Path, statistics: FeatureStatistics) -> None:
    """A reference batch as guided-diffusion's evaluator has them, beside a few images of other moments."""
    moments = {"mu": statistics.mean.numpy(), "sigma": statistics.covariance.numpy()}
    spatial = {"mu_s": np.zeros(2023, np.float32), "sigma_s": np.zeros((2, 2))}
    np.savez(path, arr_0=np.zeros((10, 8, 8, 3), np.uint8), **moments, **spatial)


def test_fid_against_a_reference_batch_of_the_evaluator(
    digits: ImageData, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the features of a small network in the place of Inception."""
    torch.manual_seed(0)
    extractor = Classifier(1, 8, 10).eval()
    monkeypatch.setattr(quality, "Inception", lambda weights, layer: extractor)
    samples, other, own = (
        digits.to_8bit(spread(pixels, 66))
        for pixels in (digits.test.pixels, digits.train.pixels.flip(-1), digits.train.pixels)
    )
    write_images(tmp_path / "made", samples[:, 0].numpy())
    made, reference, computed = (feature_statistics(extractor, [pixels]) for pixels in (samples, other, own))
    evaluators_file(tmp_path / "VIRTUAL.npz", reference)
    options = ("samples=made", "data=digits", "metrics=fid", "metrics.n=66", "metrics.real=66", "device=cpu")
    cards, found = [], []
    for name, more in (("evaluator", ["metrics.reference=VIRTUAL.npz"]), ("ours", [])):
        outcome = noising("evaluate", *options, *more, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
        summary = Run(tmp_path / name).summary
        found.append(summary["test/fid"])
        cards.append(summary["cards"]["test/fid"])
        assert (f"as of {EVALUATOR}" in outcome.out) == (name == "evaluator")
    assert found[0] == pytest.approx(frechet_distance(made, reference), rel=1e-4)
    assert found[1] == pytest.approx(frechet_distance(made, computed), rel=1e-4)
    network = "features: torch-fidelity's port of the 2015 Inception network"
    assert cards[0]["protocol"] == f"reference statistics: VIRTUAL.npz (mu, sigma as of {EVALUATOR}); {network}"
    assert cards[1]["protocol"] == f"reference statistics: computed here; {network}"
    assert cards[0]["reference"] == {"file": "VIRTUAL.npz", "made_by": EVALUATOR}
    shown = noising("compare", "evaluator", "ours")
    assert "measured differently" in shown.out
    assert "protocol" in shown.out


def test_a_reference_batch_is_shown_and_converted_with_its_count(noising: Command, tmp_path: Path) -> None:
    draws = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 3)))
    evaluators_file(tmp_path / "VIRTUAL.npz", FeatureStatistics.from_features(draws))
    outcome = noising("reference", "from=VIRTUAL.npz")
    assert outcome.code == 0, outcome.err
    assert EVALUATOR in outcome.out
    assert "images" not in outcome.out
    refused = noising("reference", "from=VIRTUAL.npz", "to=new.npz")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "does not say of how many images it is: add count=50000" in refused.err
    assert noising("reference", "from=VIRTUAL.npz", "count=50", "to=new.npz", "hydra.run.dir=run").code == 0
    assert Run(tmp_path / "run").summary["reference/images"] == 50


def lay(folder: Path) -> None:
    """Files of images that are not those of the digits, each in its way."""
    zeros = np.zeros((150, 8, 8, 1), np.uint8)
    files: dict[str, dict[str, Any]] = {
        "float.npz": {"arr_0": zeros.astype(np.float32)},
        "wide.npz": {"arr_0": np.zeros((150, 16, 16, 1), np.uint8)},
        "colour.npz": {"arr_0": np.zeros((150, 8, 8, 3), np.uint8)},
        "few.npz": {"arr_0": zeros[:100]},
        "none.npz": {"images": zeros},
        "classes.npz": {"arr_0": zeros, "arr_1": np.full(150, 10)},
        "odd.npz": {"arr_0": zeros, "arr_1": np.zeros((150, 10))},
    }
    for name, arrays in files.items():
        np.savez(folder / name, **arrays)
    (folder / "cut.npz").write_bytes((folder / "few.npz").read_bytes()[:200])
    (folder / "images.tar").write_bytes(b"")
    write_images(folder / "large", np.zeros((150, 16, 16), np.uint8))
    write_images(folder / "little", np.zeros((20, 8, 8), np.uint8))
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    ("name", "blamed"),
    [
        ("nowhere", "nowhere: there is no such folder or file"),
        ("images.tar", "images.tar: expected a folder of images, or an .npz file of arr_0"),
        ("cut.npz", "cut.npz is damaged, or no .npz file ("),
        ("none.npz", "none.npz holds images, and no array arr_0"),
        ("float.npz", "float.npz: arr_0 is float32 of shape (150, 8, 8, 1), not uint8 of shape (N, 8, 8, 1)"),
        ("wide.npz", "(150, 16, 16, 1), not uint8 of shape (N, 8, 8, 1), which digits has"),
        ("colour.npz", "(150, 8, 8, 3), not uint8 of shape (N, 8, 8, 1), which digits has"),
        ("classes.npz", "classes.npz: arr_1 goes from 10 to 10, of 10 classes"),
        ("odd.npz", "odd.npz: arr_1 is float64 of shape (150, 10), not whole numbers, one for each image"),
        ("large", "is 16x16, not 8x8"),
        ("empty", "empty has no image in it or in its sub-folders"),
        ("little", "little holds 20 images, fewer than metrics.n=70 times metrics.repeats=2: lower them"),
        ("few.npz", "few.npz holds 100 images, fewer than metrics.n=70 times metrics.repeats=2: lower them"),
    ],
)
def test_images_that_do_not_fit_are_one_line(name: str, blamed: str, digits: ImageData, tmp_path: Path) -> None:
    def read() -> None:
        given = GivenSamples(str(tmp_path / name))
        given.require_fitting(digits)
        given.read(digits, 70, 2)

    lay(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read()
    assert blamed in str(caught.value)
    assert str(caught.value).startswith("samples")
    assert "\n" not in str(caught.value)


GIVEN = ["samples=few.npz", "data=digits"]


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        (["samples=few.npz"], "samples=few.npz: data has no value: add data=cifar10, the real images they"),
        ([*GIVEN, "~metrics"], "samples=few.npz: metrics has no value: add metrics=fid"),
        ([*GIVEN, "checkpoint=x"], "samples=few.npz: images are measured whoever made them: leave checkpoint out"),
        ([*GIVEN, "sampler=ddim"], "samples=few.npz: images are there, and none is drawn: leave sampler out"),
        (["checkpoint=x", "data=digits"], "data: a model is evaluated on the data that it was trained on: leave data"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], blamed: str, noising: Command, tmp_path: Path) -> None:
    lay(tmp_path)
    outcome = noising("evaluate", *options, *([] if "~metrics" in options else FEW), "hydra.run.dir=run")
    assert outcome.code == 2
    assert blamed in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.strip().splitlines()) == 1
