"""Reference statistics: computed once, printed, and passed from file to file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from noising.metrics import reference_features as references
from noising.metrics.statistics import read_statistics
from noising.runs.folder import Run
from tests.helpers import Command, write_greys, write_images


def test_statistics_go_from_data_to_a_file_to_another(
    noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = noising("reference", "metrics.real=200", "to=real.npz", "hydra.run.dir=first")
    assert outcome.code == 0, outcome.err
    assert "classifier, 64 dims" in outcome.out
    monkeypatch.setattr(references, "extract", None)  # once is enough
    assert noising("reference", "metrics.real=200", "hydra.run.dir=second").code == 0
    first, second = (Run(tmp_path / name).summary for name in ("first", "second"))
    assert first == second
    assert first["reference/images"] == 200
    assert noising("reference", "from=real.npz", "to=real.pt").code == 0
    assert noising("reference", "from=real.pt", "count=200", "to=again.npz").code == 0
    (before, card), (after, _) = (read_statistics(tmp_path / name) for name in ("real.npz", "again.npz"))
    assert (card["split"], card["images"], card["data"]) == ("train", 200, "digits")
    assert after.count == 200
    torch.testing.assert_close(after.mean, before.mean, rtol=1e-6, atol=1e-7)  # torch-fidelity's is single precision
    assert torch.equal(after.covariance, before.covariance)


@pytest.mark.slow
def test_a_batch_size_is_for_training_alone(noising: Command, tmp_path: Path) -> None:
    """Fewer training images than the 128 that a step of training would take."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate("ab"):
        images = np.random.default_rng(number).integers(0, 256, (30, 8, 8), dtype=np.uint8)
        write_images(tmp_path / "images" / name, images)
    options = ["data=image_folder", "data.root=images", "data.resolution=8", "data.labels=true", "hydra.run.dir=run"]
    outcome = noising("reference", *options)
    assert outcome.code == 0, outcome.err
    assert Run(tmp_path / "run").summary["reference/images"] == 49


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        (["from=none.npz"], "from: none.npz: there is no such file"),
        (["from=bare.pt"], "bare.pt does not store its number of images: write a file that does with "),
        (["from=bare.pt", "count=1"], "count must be a whole number from 2"),
        (["from=bare.pt", "count=9", "to=real.csv"], "to=real.csv: statistics are written to .npz or .pt files"),
        (["metrics.real=5000"], "5000 images are more than the 1309 train images of digits: use fewer"),
        (["data=image_folder", "data.root=flat", "data.resolution=8"], "image_folder has no labels"),
    ],
)
def test_a_bad_option_is_one_line(options: list[str], blamed: str, noising: Command, tmp_path: Path) -> None:

    write_greys(tmp_path / "flat")
    torch.save({"mu": np.zeros(3, np.float32), "sigma": np.eye(3)}, tmp_path / "bare.pt")
    outcome = noising("reference", *options)
    assert outcome.code == 2
    assert blamed in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("error")]) == 1
