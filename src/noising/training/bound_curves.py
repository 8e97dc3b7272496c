"""Where in the chain the bits lie, of each split: bound_by_step.csv, and what its figures are drawn from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from noising.diffusion.bound_meter import BoundCurve
from noising.diffusion.transition import Chain
from noising.training.run import replacing

__all__ = ["StepBin", "read_bins", "step_bins", "write_bins"]


class StepBin(NamedTuple):
    """Some steps of the chain, on one split: a row of bound_by_step.csv."""

    split: str
    first_step: int
    last_step: int
    log_snr_high: float
    """λ at the clean end of the bin; infinite at the first step."""
    log_snr_low: float
    bits_per_dim_per_step: float
    """L_t, the mean over the bin; of the first step L_0."""
    stderr: float
    """Of it, over times, noise and images."""
    rate: float
    """bits/dim sent by the bin's middle, from the noisy end: L_T and all L_t above. Ho et al. (2020), section 4.3."""
    rmse_of_255: float
    """√(E‖x − x̂‖²/D) in grey levels of 0..255: the distortion at that rate."""

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1

    @property
    def bits(self) -> float:
        """bits/dim of the whole bin."""
        return self.bits_per_dim_per_step * self.steps

    @property
    def log_snr_width(self) -> float:
        return self.log_snr_high - self.log_snr_low


def step_bins(curve: BoundCurve, chain: Chain, split: str, prior: float) -> list[StepBin]:
    """One row a bin, from step 1 up; prior: L_T in bits/dim."""
    edges = curve.edges.tolist()
    log_snr = [float(chain.level(edge - 1).log_snr) for edge in edges]
    rows: list[StepBin] = []
    sent = prior
    values = zip(curve.bits.tolist(), curve.stderr.tolist(), curve.error.tolist(), strict=True)
    for number, (bits, stderr, error) in reversed(list(enumerate(values))):
        first, last = edges[number], edges[number + 1] - 1
        whole = bits * (last - first + 1)
        rmse = 127.5 * math.sqrt(error)
        ends = (log_snr[number], log_snr[number + 1])
        # the decoder's bits are the distortion's own, not the rate's
        rate = sent + (whole / 2 if first > 1 else 0.0)
        rows.append(StepBin(split, first, last, *ends, bits, stderr, rate, rmse))
        sent += whole
    return rows[::-1]


def write_bins(path: Path, bins: Sequence[StepBin]) -> None:
    """The rows of the bins' splits, in place of those that are there; other splits' stay."""
    new = {row.split for row in bins}
    kept = [row for row in read_bins(path) if row.split not in new] if path.exists() else []
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(StepBin._fields)
    table.writerows([*kept, *bins])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def read_bins(path: Path) -> list[StepBin]:
    """Every row, in the file's order."""
    with open(path, newline="") as file:
        return [
            StepBin(
                row["split"],
                int(row["first_step"]),
                int(row["last_step"]),
                *(float(row[name]) for name in StepBin._fields[3:]),
            )
            for row in csv.DictReader(file)
        ]
