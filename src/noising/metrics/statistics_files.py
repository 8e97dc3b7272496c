"""Feature statistics as files: those of clean-fid and EDM (.npz), of torch-fidelity (.pt), and our own.

All hold the mean `mu` and the covariance `sigma`; only ours say of how many images they are, and of which. What is read
is arrays and nothing else: a file with code in it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from noising.metrics.statistics import FeatureStatistics

__all__ = ["StatisticsFile", "read_statistics", "write_statistics"]

SUFFIXES = (".npz", ".pt")

_ARRAYS = [  # what a pickled array is made of
    np.ndarray,
    np.dtype,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]


class StatisticsFile(NamedTuple):
    """What a file says."""

    statistics: FeatureStatistics
    card: dict[str, Any]
    """Of which images and features; empty for other tools' files."""


def read_statistics(path: str | Path, count: int | None = None) -> StatisticsFile:
    """Statistics from a file. count: of how many images, where the file does not say.

    Raises ValueError if the file is missing, damaged, of another kind, or the count is said by nobody, or otherwise by
    the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: statistics are in .npz files (clean-fid, EDM) or .pt files (torch-fidelity)")
    try:
        fields = _npz(path) if path.suffix == ".npz" else _pt(path)
    except Exception as error:  # numpy and torch raise whatever the damage makes them stumble over
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
        return StatisticsFile(FeatureStatistics.of(mean, covariance, given), card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_statistics(file: IO[bytes], suffix: str, statistics: FeatureStatistics, card: Mapping[str, Any]) -> None:
    """suffix: .npz, as clean-fid, EDM and we read it, or .pt, as torch-fidelity does; ValueError for others."""
    mean, covariance = statistics.mean.numpy(), statistics.covariance.numpy()
    if suffix == ".npz":
        words = json.dumps(dict(card))
        np.savez(file, mu=mean, sigma=covariance, count=np.int64(statistics.count), card=np.array(words))
    elif suffix == ".pt":
        torch.save({"mu": mean.astype(np.float32), "sigma": covariance}, file)  # its own means are single precision
    else:
        raise ValueError(f"statistics are written to .npz or .pt files, not to {suffix or 'one without an ending'}")


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as fields:
        return dict(fields)


def _pt(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(_ARRAYS):
        fields: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return fields
