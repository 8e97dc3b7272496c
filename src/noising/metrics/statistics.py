"""Mean and covariance of features, their Fréchet distance, and their files."""

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noising.config.words import shell_word
from noising.runs.sizes import UnfoldingError, require_archive_size


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Moments of `count` features, None where a file does not say of how many: float64, on the host."""

    count: int | None
    mean: Tensor  # (dims,)
    covariance: Tensor  # (dims, dims), unbiased

    @property
    def dims(self) -> int:
        return len(self.mean)

    @classmethod
    def from_features(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of features (N, dims) of any type and device.

        Raises ValueError if there are fewer than two, or one is not finite.
        """
        features = features.detach().cpu().double()
        lost = int((~features.isfinite()).any(1).sum())
        if lost:
            raise ValueError(f"{lost} of {len(features)} features are not finite")
        if len(features) < 2:
            raise ValueError(f"the covariance needs at least 2 features, there are {len(features)}")
        return cls(len(features), features.mean(0), features.T.cov())


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), never negative, in squared units of the features.

    With any roots Σ = R Rᵀ, the trace of (Σ_a Σ_b)^½ is the sum of the singular values of R_aᵀ R_b: real for any
    rounding, and for near-singular covariances as accurate as the covariances themselves.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017), equation 6. https://arxiv.org/abs/1706.08500

    Raises:
        ValueError: the dims differ, or one is known to have at most as many features as dims: its covariance is
            singular.
    """
    if a.dims != b.dims:
        raise ValueError(f"the features have {a.dims} dims on one side and {b.dims} on the other")
    smallest = min((one.count for one in (a, b) if one.count is not None), default=math.inf)
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


SUFFIXES = (".npz", ".pt")  # endings of the files that can be read and written
_ARRAYS = [  # the types in a pickled array
    np.ndarray,
    np.dtype,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]
EVALUATOR = "guided-diffusion's evaluator"
"""The program whose reference batches hold the moments of a whole data set, by which ADM and its successors compare."""
_OF_EVALUATOR = {"mu", "sigma", "mu_s", "sigma_s"}  # arrays of its reference batches; the last two of its sFID
_ROUNDING = 1e-5  # relative tolerance of a file's covariance, which may be in single precision


class StatisticsFile(NamedTuple):
    """The content of a file of statistics."""

    statistics: FeatureStatistics
    card: dict[str, Any]  # description of the images and the extractor; of files of other tools no more than `made_by`


def read_statistics(path: str | Path, count: int | None = None) -> StatisticsFile:
    """Read statistics from a file. count: number of images, for a file without it.

    A reference batch of EVALUATOR, an .npz with mu, sigma, mu_s and sigma_s, needs none: its moments are those of a
    whole data set, and the images that it may hold beside them (arr_0) are another, smaller set, which is not read.

    Raises ValueError if the file is missing, damaged or of another kind, or count is missing or contradicts the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: statistics are in .npz files (clean-fid, EDM) or .pt files (torch-fidelity)")
    fields: dict[str, Any]
    of_evaluator = False
    try:
        if zipfile.is_zipfile(path):
            require_archive_size(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                fields = {name: arrays[name] for name in ("mu", "sigma", "count", "card") if name in arrays.files}
                of_evaluator = {*arrays.files} >= _OF_EVALUATOR
        else:
            with torch.serialization.safe_globals(_ARRAYS):
                fields = torch.load(path, map_location="cpu", weights_only=True)
    except UnfoldingError as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # the type depends on the damage
        raise ValueError(f"{path} is damaged, or holds more than arrays") from error
    missing = {"mu", "sigma"} - set(fields)
    if missing:
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}: it does not hold statistics")
    given = int(fields["count"]) if "count" in fields else count
    if count is not None and given != count:
        raise ValueError(f"{path} is from {given} images, as the file says, not from count={count}")
    if given is None and not of_evaluator:
        raise ValueError(
            f"{path} does not store its number of images: write a file that does with noising reference "
            f"{shell_word('from', path)} count=50000 to=NEW.npz"
        )
    mean, covariance = (torch.from_numpy(np.asarray(fields[name], np.float64)) for name in ("mu", "sigma"))
    card = json.loads(str(fields["card"])) if "card" in fields else {}
    if of_evaluator:
        card = {"made_by": EVALUATOR, **card}
    if fault := _fault(mean, covariance, given):
        raise ValueError(f"{path}: not statistics: {fault}")
    return StatisticsFile(FeatureStatistics(given, mean, covariance), card)


def _fault(mean: Tensor, covariance: Tensor, count: int | None) -> str | None:
    """The reason why these are no moments of at least two features; None if they are."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or (count is not None and count < 2):
        return f"mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}, {count=}"
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        return "a moment is not finite"
    scale = float(covariance.abs().max())
    if float((covariance - covariance.T).abs().max()) > _ROUNDING * scale:
        return "the covariance is not symmetric"
    if float(torch.linalg.eigvalsh(covariance).min()) < -_ROUNDING * scale * len(mean):
        return "the covariance has negative variances"
    return None


def write_statistics(
    file: IO[bytes], suffix: str, statistics: FeatureStatistics, card: Mapping[str, Any], **arrays: Any
) -> None:
    """Write statistics to a file; suffix: .npz, as read by clean-fid and EDM, or .pt, as read by torch-fidelity.

    arrays: stored beside them in .npz. Raises ValueError for another suffix, and if the count is not known.
    """
    if statistics.count is None:
        raise ValueError("the statistics do not say of how many images they are")
    mean, covariance = statistics.mean.numpy(), statistics.covariance.numpy()
    if suffix == ".npz":
        np.savez(file, mu=mean, sigma=covariance, count=statistics.count, card=json.dumps(dict(card)), **arrays)
    elif suffix == ".pt":
        torch.save({"mu": mean.astype(np.float32), "sigma": covariance}, file)  # torch-fidelity's means are float32
    else:
        raise ValueError(f"statistics are written to .npz or .pt files, not to {suffix or 'a file without a suffix'}")
