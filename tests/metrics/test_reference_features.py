"""Features of real images are kept in a cache, and a damaged cache is made again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.metrics import reference_features as references
from noising.metrics.classifier import Classifier
from noising.metrics.reference_features import ReferenceFeatures, fitted_classifier


def test_data_without_labels_is_refused() -> None:
    class Unlabelled:
        name, classes = "patches", 0

    with pytest.raises(ConfigError, match="patches has no labels"):
        fitted_classifier(Unlabelled())  # type: ignore[arg-type]


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
