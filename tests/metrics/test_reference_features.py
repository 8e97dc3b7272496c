"""Features of real images are stored in a cache; a damaged one is made again, and without one the work goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.metrics import reference_features as references
from noising.metrics.classifier import Classifier
from noising.metrics.reference_features import ReferenceFeatures, fitted_classifier
from tests.helpers import Command


def test_data_without_labels_is_refused() -> None:
    class Unlabelled:
        name, classes = "patches", 0

    with pytest.raises(ConfigError, match="patches has no labels"):
        fitted_classifier(Unlabelled())  # type: ignore[arg-type]


def test_flips_add_every_image_mirrored_left_to_right(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOISING_CACHE", str(tmp_path))
    torch.manual_seed(0)
    reader = ReferenceFeatures(digits, Classifier(1, 8, 10).eval(), 100)
    chosen = digits.test.pixels[reader.reference("test", 50).images]
    both = reader.reference("test", 50, flips=True)
    mirrored = chosen.numpy()[..., ::-1].copy()
    expected = reader.features(torch.cat([chosen, torch.from_numpy(mirrored)]))
    assert torch.equal(both.features, expected)
    assert both.statistics.count == 100


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


@pytest.mark.parametrize("refused", ["folder", "writing", "renaming"])
def test_a_cache_that_cannot_be_written_stores_nothing(
    refused: str,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on a read-only home, and on a full disk: the numbers are those of a cache, and a line says why it is none."""

    def fit(*given: object) -> Classifier:
        torch.manual_seed(0)
        return Classifier(1, 8, 10)

    monkeypatch.setattr(references, "fit_classifier", fit)

    def features() -> torch.Tensor:
        return ReferenceFeatures(digits, fitted_classifier(digits), 100).reference("test", 100).features

    monkeypatch.setenv("NOISING_CACHE", str(tmp_path / "cache"))
    stored = features()
    cache = tmp_path / "other"
    monkeypatch.setenv("NOISING_CACHE", str(cache))

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if refused == "folder":
        cache.touch()
    elif refused == "writing":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    assert torch.equal(features(), stored)
    assert len(caplog.messages) == 2
    for line in caplog.messages:
        assert "cannot be written (" in line
        assert line.endswith("the next run computes it again; set NOISING_CACHE=FOLDER")
    assert [*tmp_path.glob("other/*")] == []


def test_a_run_goes_on_without_a_cache(
    noising: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NOISING_CACHE", str(tmp_path / "file" / "cache"))
    outcome = noising(
        "evaluate", f"checkpoint={trained}", "sampler=ddim", "sampler.steps=2", "metrics.n=70", "device=cpu"
    )
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
