"""Statistics pass through every format unchanged, other tools read them, and what is not statistics is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from noising.metrics.statistics import FeatureStatistics, frechet_distance, read_statistics, write_statistics
from tests.metrics.test_statistics import normals, statistics_of

DIMS = 6


def written(path: Path, statistics: FeatureStatistics, **card: Any) -> Path:
    with open(path, "wb") as file:
        write_statistics(file, path.suffix, statistics, card)
    return path


def test_our_own_file_holds_all(tmp_path: Path) -> None:
    statistics = statistics_of(normals(20, DIMS))
    read, card = read_statistics(written(tmp_path / "real.npz", statistics, split="train", images=20))
    assert card == {"split": "train", "images": 20}
    assert read.count == 20
    assert torch.equal(read.mean, statistics.mean)
    torch.testing.assert_close(read.covariance, statistics.covariance, rtol=1e-15, atol=0)
    with np.load(tmp_path / "real.npz", allow_pickle=False) as fields:  # what clean-fid and EDM look for
        np.testing.assert_array_equal(fields["mu"], statistics.mean.numpy())
        np.testing.assert_array_equal(fields["sigma"], statistics.covariance.numpy())


def test_torch_fidelity_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    real, fake = normals(200, DIMS).float() + 1, normals(200, DIMS, seed=1).float()
    ours = torch.load(written(tmp_path / "real.pt", statistics_of(real)), weights_only=False)
    theirs = fid_features_to_statistics(fake)
    distance = fid_statistics_to_metric(ours, theirs, verbose=False)[KEY_METRIC_FID]
    assert distance == pytest.approx(frechet_distance(statistics_of(real), statistics_of(fake)), rel=1e-5)
    torch.save(theirs, tmp_path / "fake.pt")
    read, card = read_statistics(tmp_path / "fake.pt", count=200)
    assert card == {}
    assert frechet_distance(read, statistics_of(fake)) < 1e-6


def test_statistics_of_edm_and_clean_fid(tmp_path: Path) -> None:
    np.savez(tmp_path / "edm.npz", mu=np.arange(3.0), sigma=np.eye(3))
    read, _ = read_statistics(tmp_path / "edm.npz", count=50000)
    assert (read.count, read.mean.tolist()) == (50000, [0, 1, 2])
    torch.testing.assert_close(read.covariance, torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"does not say of how many images it is: noising reference from="):
        read_statistics(tmp_path / "edm.npz")


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "broken_into"),)


def test_what_is_not_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    np.savez(tmp_path / "apart.npz", mu=np.zeros(3), sigma=np.eye(2), count=9)
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3), count=9)
    np.savez(tmp_path / "negative.npz", mu=np.zeros(3), sigma=-np.eye(3), count=9)
    np.savez(tmp_path / "one_way.npz", mu=np.zeros(2), sigma=np.array([[1, 0.5], [0, 1]]), count=9)
    np.savez(tmp_path / "many.npz", mu=np.zeros(3), sigma=np.eye(3), count=50)
    whole = written(tmp_path / "whole.npz", statistics_of(normals(20, DIMS))).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "code.npz", mu=np.array(Malicious(tmp_path), dtype=object), sigma=np.eye(3))
    torch.save({"mu": Malicious(tmp_path)}, tmp_path / "code.pt")
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps({"mu": 0}))
    cases = {
        "none.npz": "there is no such file",
        "edm2.pkl": r"statistics are in \.npz files \(clean-fid, EDM\) or \.pt files \(torch-fidelity\)",
        "other.npz": "has no sigma: it does not hold statistics",
        "apart.npz": r"not statistics: mean \(3,\), covariance \(2, 2\)",
        "nan.npz": "a moment is not finite",
        "negative.npz": "the covariance has negative variances",
        "one_way.npz": "the covariance is not symmetric",
        "many.npz": "says itself that it is of 50 images, not of count=9",
        **dict.fromkeys(["half.npz", "half.pt", "code.npz", "code.pt"], "is damaged, or holds more than arrays"),
    }
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words):
            read_statistics(tmp_path / name, count=9)
    assert not (tmp_path / "broken_into").exists()
    with pytest.raises(ValueError, match=r"written to \.npz or \.pt files, not to \.json"):
        written(tmp_path / "some.json", statistics_of(normals(20, DIMS)))
