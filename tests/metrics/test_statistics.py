"""Statistics are exact however they were gathered, and the distance of two Gaussians is the one of the books."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from noising.metrics.statistics import FeatureStatistics, frechet_distance, read_statistics, write_statistics
from tests.metrics.helpers import normals, statistics_of

DIMS = 6


def with_moments(mean: Tensor, root: Tensor, seed: int = 0) -> FeatureStatistics:
    """Those of 50 features that have exactly this mean and the covariance root rootᵀ."""
    drawn = normals(50, len(mean), seed=seed)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(drawn.T.cov()), (drawn - drawn.mean(0)).T, upper=False)
    return statistics_of(mean + white.T @ root.T)


# Statistics


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_exact_even_where_the_mean_is_large_against_the_spread(offset: float) -> None:
    features = normals(97, DIMS) @ normals(DIMS, DIMS, seed=1)
    statistics = statistics_of(features + offset)
    tolerance = 1e-12 if offset == 0 else 1e-8  # 1e6 + f itself is rounded to 1e-10
    assert (statistics.count, statistics.dims) == (97, DIMS)
    torch.testing.assert_close(statistics.mean - offset, features.mean(0), rtol=0, atol=tolerance)
    expected = torch.from_numpy(np.cov(features.numpy().T))
    torch.testing.assert_close(statistics.covariance, expected, rtol=0, atol=tolerance)


def test_features_far_from_one_another_keep_the_spread_within_and_between() -> None:
    features = normals(40, DIMS) + 1e6 * (torch.arange(40) >= 10)[:, None]
    expected = torch.from_numpy(np.cov(features.numpy().T))
    torch.testing.assert_close(statistics_of(features).covariance, expected, rtol=1e-12, atol=0)


def test_features_of_single_precision_are_gathered_in_double() -> None:
    features = normals(1000, DIMS).float() + 100
    expected = torch.from_numpy(np.cov(features.double().numpy().T))
    torch.testing.assert_close(statistics_of(features).covariance, expected, rtol=0, atol=1e-12)


# The distance


@pytest.mark.parametrize("smallest", [0.5, 1e-9, 0.0])
def test_distance_of_commuting_covariances(smallest: float) -> None:
    """With the same eigenvectors, ‖δ‖² + Σ (√a − √b)² over the eigenvalues."""
    vectors = torch.linalg.qr(normals(DIMS, DIMS)).Q
    a = torch.tensor([4.0, 3.0, 2.0, 1.0, smallest, smallest], dtype=torch.float64)
    b = torch.tensor([1.0, 2.0, 9.0, smallest, 1.0, smallest], dtype=torch.float64)
    shift = normals(DIMS, seed=1)
    expected = shift @ shift + ((a.sqrt() - b.sqrt()) ** 2).sum()
    found = frechet_distance(
        with_moments(torch.zeros(DIMS, dtype=torch.float64), vectors * a.sqrt(), seed=2),
        with_moments(shift, vectors * b.sqrt(), seed=3),
    )
    assert found == pytest.approx(float(expected), rel=1e-10 if smallest else 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_distance_by_the_matrix_root(seed: int) -> None:
    a, b = (statistics_of(normals(40, DIMS, seed=10 * seed + k) @ normals(DIMS, DIMS, seed=k)) for k in (1, 2))
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    shift = a.mean - b.mean
    expected = float(shift @ shift + (a.covariance + b.covariance).trace()) - 2 * np.trace(root).real
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_distance_of_equals_is_zero_even_of_rank_one() -> None:
    wide = statistics_of(normals(40, DIMS))
    thin = statistics_of(normals(40, 1) * torch.ones(DIMS, dtype=torch.float64))
    for statistics in (wide, thin):
        assert 0 <= frechet_distance(statistics, statistics) < 1e-12


def test_distance_is_that_of_torchmetrics() -> None:
    class FourNumbers(torch.nn.Module):
        num_features = 4

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.double().flatten(1)[:, ::3] ** 0.5

    drawn = np.random.default_rng(0)
    real, fake = (torch.from_numpy(drawn.integers(0, top, (60, 3, 2, 2), dtype=np.uint8)) for top in (256, 200))
    theirs = FrechetInceptionDistance(feature=FourNumbers()).set_dtype(torch.float64)  # type: ignore[arg-type]
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(*(statistics_of(FourNumbers()(pixels)) for pixels in (real, fake)))
    assert ours > 1
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


# One line each


def test_features_that_are_not_finite_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        features = normals(5, DIMS)
        features[1:3, 2] = bad
        with pytest.raises(ValueError, match=r"^2 of 5 features are not finite$"):
            statistics_of(features)


def test_dims_must_agree() -> None:
    a, b = statistics_of(normals(20, 3)), statistics_of(normals(20, 4))
    with pytest.raises(ValueError, match=r"^the features have 3 dims on one side and 4 on the other$"):
        frechet_distance(a, b)


def test_too_few_features() -> None:
    enough, few = (statistics_of(normals(count, DIMS)) for count in (DIMS + 1, DIMS))
    assert frechet_distance(enough, enough) < 1e-12
    for pair in ((enough, few), (few, enough)):
        with pytest.raises(ValueError, match=r"^a Fréchet distance of 6 dims needs at least 7 features, got 6$"):
            frechet_distance(*pair)
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"^the covariance needs at least 2 features, there are {count}$"):
            statistics_of(normals(count, DIMS))


# Files of statistics


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
    path = tmp_path / "a = b.npz"
    np.savez(path, mu=np.arange(3.0), sigma=np.eye(3))
    read, _ = read_statistics(path, count=50000)
    assert (read.count, read.mean.tolist()) == (50000, [0, 1, 2])
    torch.testing.assert_close(read.covariance, torch.eye(3, dtype=torch.float64))
    line = (
        f"{path} does not store its number of images: write a file that does with noising reference "
        f"'from=\"{path}\"' count=50000 to=NEW.npz"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        read_statistics(path)


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
        "many.npz": "is from 50 images, as the file says, not from count=9",
        **dict.fromkeys(["half.npz", "half.pt", "code.npz", "code.pt"], "is damaged, or holds more than arrays"),
    }
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words):
            read_statistics(tmp_path / name, count=9)
    assert not (tmp_path / "broken_into").exists()
    with pytest.raises(ValueError, match=r"written to \.npz or \.pt files, not to \.json"):
        written(tmp_path / "some.json", statistics_of(normals(20, DIMS)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rounding_of_a_file_is_forgiven_and_no_more(scale: float, tmp_path: Path) -> None:
    """1e-5 of the largest entry between the halves of a covariance, and as much a dim below a variance of zero."""

    def read(size: float, row: int, column: int) -> None:
        covariance = np.eye(4)
        covariance[row, column] = size
        np.savez(tmp_path / "of.npz", mu=np.zeros(4), sigma=scale * covariance)
        read_statistics(tmp_path / "of.npz", count=100)

    read(0.9e-5, 0, 1)
    read(-4 * 0.9e-5, 3, 3)
    with pytest.raises(ValueError, match="the covariance is not symmetric"):
        read(1.1e-5, 0, 1)
    with pytest.raises(ValueError, match="the covariance has negative variances"):
        read(-4 * 1.1e-5, 3, 3)
