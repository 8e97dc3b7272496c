"""Mean and covariance of features, accumulated by batch, their Fréchet distance, and their files.

The accumulated sum is the scatter S = Σ (f − μ)(f − μ)ᵀ about the running mean. The difference of Σ f fᵀ and n μ μᵀ
would lose all its digits if the mean is large against the spread. Two parts a and b are merged exactly, with
δ = μ_b − μ_a:

    n = n_a + n_b,   μ = μ_a + δ n_b/n,   S = S_a + S_b + δ δᵀ n_a n_b/n.

Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-5
"""Tolerance of a file's covariance, which may be in single precision, relative to its largest entry."""


class FeatureStatistics:
    """Count, mean and unbiased covariance of (N, dims) features: float64, on the host."""

    def __init__(self, dims: int) -> None:
        if dims < 1:
            raise ValueError(f"dims must be at least 1, got {dims}")
        self.dims = dims
        self._count = 0
        self._mean = torch.zeros(dims, dtype=torch.float64)
        self._scatter = torch.zeros(dims, dims, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Number of features so far."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean (dims,). Raises ValueError before the first feature."""
        self._require(1, "mean")
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Covariance (dims, dims), S/(n − 1). Raises ValueError before the second feature."""
        self._require(2, "covariance")
        return self._scatter / (self._count - 1)

    def update(self, features: Tensor) -> None:
        """Add features (B, dims) of any type and device. Raises ValueError, and adds none, if one is not finite."""
        if features.ndim != 2 or features.shape[1] != self.dims:
            raise ValueError(f"features must be (B, {self.dims}), got {tuple(features.shape)}")
        if len(features) == 0:
            return
        features = features.detach().cpu().double()
        if not bool(features.isfinite().all()):
            raise ValueError(f"{int((~features.isfinite()).any(1).sum())} of {len(features)} features are not finite")
        mean = features.mean(0)
        centred = features - mean
        self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add all features of the other. Raises ValueError if the dims differ."""
        _require_equal_dims(self, other)
        if other._count > 0:
            self._join(other._count, other._mean, other._scatter)

    @classmethod
    def from_features(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of one set of features (N, dims)."""
        statistics = cls(features.shape[1])
        statistics.update(features)
        return statistics

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int) -> "FeatureStatistics":
        """Statistics of given moments (dims,) and (dims, dims) of `count` features.

        Raises ValueError if they cannot be a mean and a covariance of at least two features.
        """
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or count < 2:
            raise ValueError(
                f"not statistics: mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}, {count=}"
            )
        if not bool(mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("not statistics: a moment is not finite")
        scale = float(covariance.abs().max())
        if float((covariance - covariance.T).abs().max()) > _ROUNDING * scale:
            raise ValueError("not statistics: the covariance is not symmetric")
        if float(torch.linalg.eigvalsh(covariance.double()).min()) < -_ROUNDING * scale * len(mean):
            raise ValueError("not statistics: the covariance has negative variances")
        statistics = cls(len(mean))
        statistics._count, statistics._mean = count, mean.double()
        statistics._scatter = covariance.double() * (count - 1)
        return statistics

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self._count + count
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._count = total

    def _require(self, least: int, what: str) -> None:
        if self._count < least:
            raise ValueError(f"the {what} needs at least {least} features, there are {self._count}")


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), never negative, in squared units of the features.

    With any roots Σ = R Rᵀ, the trace of (Σ_a Σ_b)^½ is the sum of the singular values of R_aᵀ R_b: real for any
    rounding, and for near-singular covariances as accurate as the covariances themselves.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017), equation 6. https://arxiv.org/abs/1706.08500

    Raises:
        ValueError: the dims differ, or one has at most as many features as dims, so that its covariance is singular.
    """
    _require_equal_dims(a, b)
    smallest = min(a.count, b.count)
    if smallest <= a.dims:
        raise ValueError(f"a Fréchet distance of {a.dims} dims needs at least {a.dims + 1} features, got {smallest}")
    shift = a.mean - b.mean
    overlap = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return max(0.0, float(shift @ shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap))


def _root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = Σ; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def _require_equal_dims(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dims != b.dims:
        raise ValueError(f"the features have {a.dims} dims on one side and {b.dims} on the other")


SUFFIXES = (".npz", ".pt")
"""Endings of the files that can be read and written."""
_ARRAYS = [  # the types in a pickled array
    np.ndarray,
    np.dtype,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]


class StatisticsFile(NamedTuple):
    """The content of a file of statistics."""

    statistics: FeatureStatistics
    card: dict[str, Any]
    """Description of the images and the extractor; empty for files of other tools."""


def read_statistics(path: str | Path, count: int | None = None) -> StatisticsFile:
    """Read statistics from a file. count: number of images, for a file without it.

    Raises ValueError if the file is missing, damaged or of another kind, or count is missing or contradicts the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: statistics are in .npz files (clean-fid, EDM) or .pt files (torch-fidelity)")
    try:
        fields = _npz(path) if path.suffix == ".npz" else _pt(path)
    except Exception as error:  # the type depends on the damage
        raise ValueError(f"{path} is damaged, or holds more than arrays") from error
    missing = {"mu", "sigma"} - set(fields)
    if missing:
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}: it does not hold statistics")
    given = int(fields["count"]) if "count" in fields else count
    if count is not None and given != count:
        raise ValueError(f"{path} says itself that it is of {given} images, not of count={count}")
    if given is None:
        raise ValueError(
            f"{path} does not say of how many images it is: noising reference from={path} count=50000 to=NEW.npz does"
        )
    mean, covariance = (torch.from_numpy(np.asarray(fields[name], np.float64)) for name in ("mu", "sigma"))
    card = json.loads(str(fields["card"])) if "card" in fields else {}
    try:
        return StatisticsFile(FeatureStatistics.from_moments(mean, covariance, given), card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_statistics(file: IO[bytes], suffix: str, statistics: FeatureStatistics, card: Mapping[str, Any]) -> None:
    """Write statistics to a file; suffix: .npz, as read by clean-fid and EDM, or .pt, as read by torch-fidelity.

    Raises ValueError for another suffix.
    """
    mean, covariance = statistics.mean.numpy(), statistics.covariance.numpy()
    if suffix == ".npz":
        words = json.dumps(dict(card))
        np.savez(file, mu=mean, sigma=covariance, count=np.int64(statistics.count), card=np.array(words))
    elif suffix == ".pt":
        torch.save({"mu": mean.astype(np.float32), "sigma": covariance}, file)  # torch-fidelity's means are float32
    else:
        raise ValueError(f"statistics are written to .npz or .pt files, not to {suffix or 'one without an ending'}")


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as fields:
        return dict(fields)


def _pt(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(_ARRAYS):
        fields: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return fields
