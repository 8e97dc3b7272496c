"""Pictures of the bound: L_t by step and by λ for each split, the rate-distortion curve; and their table."""

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noising.diffusion.likelihood.meter import BoundCurve
from noising.diffusion.transitions import Chain
from noising.plots.grids import save_figure
from noising.runs.rows import write_csv

COLOURS = {"test": "tab:blue", "train": "tab:red", "val": "tab:green"}


class StepBin(NamedTuple):
    """Consecutive steps of the chain on one split: a row of bound_by_step.csv."""

    split: str
    first_step: int
    last_step: int
    log_snr_high: float
    """λ at the clean end of the bin; infinite at the first step."""
    log_snr_low: float
    bits_per_dim_per_step: float
    """Mean of L_t over the bin; L_0 at the first step."""
    stderr: float
    """Standard error of that mean, over times, noise and images."""
    rate: float
    """bits/dim sent from the noisy end to the bin's middle: L_T and all L_t above. Ho et al. (2020), section 4.3."""
    rmse_of_255: float
    """Distortion at that rate, √(E‖x − x̂‖²/D), in grey levels of 0..255."""

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1

    @property
    def bits(self) -> float:
        """Sum of L_t over the bin, in bits/dim."""
        return self.bits_per_dim_per_step * self.steps

    @property
    def log_snr_width(self) -> float:
        return self.log_snr_high - self.log_snr_low


def step_bins(curve: BoundCurve, chain: Chain, split: str, prior: float) -> list[StepBin]:
    """Rows of a curve, one a bin, from step 1 up; prior: L_T in bits/dim."""
    log_snr = [float(chain.level(edge - 1).log_snr) for edge in curve.edges.tolist()]
    ends = zip(curve.edges[:-1].tolist(), (curve.edges[1:] - 1).tolist(), log_snr[:-1], log_snr[1:], strict=True)
    values = zip(ends, curve.bits.tolist(), curve.stderr.tolist(), curve.error.tolist(), strict=True)
    rows: list[StepBin] = []
    sent = prior
    for (first, last, high, low), bits, stderr, error in reversed(list(values)):
        whole = bits * (last - first + 1)
        # the decoder's bits are the distortion's own, not the rate's
        rate = sent + (whole / 2 if first > 1 else 0.0)
        rows.append(StepBin(split, first, last, high, low, bits, stderr, rate, 127.5 * math.sqrt(error)))
        sent += whole
    return rows[::-1]


def with_others(path: Path, bins: Sequence[StepBin]) -> list[StepBin]:
    """Rows in place of those of the same splits in a file, behind its others; a damaged file has none."""
    new = {row.split for row in bins}
    others: list[StepBin] = []
    with suppress(OSError, ValueError, TypeError):
        others = [row for row in read_bins(path) if row.split not in new]
    return [*others, *bins]


def write_bins(path: Path, bins: Sequence[StepBin]) -> None:
    """Write a file of these rows."""
    write_csv(path, StepBin._fields, bins)


def read_bins(path: Path) -> list[StepBin]:
    """Read every row, in the order of the file."""
    with open(path, newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    return [StepBin(split, int(first), int(last), *map(float, numbers)) for split, first, last, *numbers in rows]


def bound_by_step(path: Path, bins: Sequence[StepBin], title: str, memorized: float) -> None:
    """Plot L_t of each split against t, and the first split's sum up to t.

    memorized: sum at t = T, on the training images, of a model that has memorized them.
    """
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axes = figure.subplots()
    # a decoder that has nothing left to decide would stretch the scale to 1e-40
    least = max(row.bits_per_dim_per_step for row in bins) * 1e-7
    splits = _by_split(bins)
    for split, rows in splits.items():
        edges, bits = _edges(rows), _column(rows, "bits_per_dim_per_step")
        bits[bits < least] = math.nan
        axes.stairs(bits, edges, baseline=None, linewidth=1.8, color=COLOURS[split], label=f"$L_t$, {split}")
        _band(axes, edges, bits, _column(rows, "stderr"), split)
    scale = "log" if any(row.bits > 0 for row in bins) else "linear"  # a chain of one step has no L_t
    axes.set(xscale="log", yscale=scale, xlabel="step t (t = 1: least noise)", ylabel="$L_t$  [bits/dim per step]")
    if scale == "log":
        axes.set_ylim(bottom=least)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9, loc="center left")
    first = splits[bins[0].split]
    cumulative = axes.twinx()
    total = np.cumsum([0.0, *(row.bits for row in first)])
    cumulative.plot(_edges(first), total, color="tab:orange", linewidth=1.4)
    cumulative.set_ylabel(f"sum of $L_t$ up to t, {first[0].split}  [bits/dim]", color="tab:orange")
    cumulative.axhline(memorized, color="tab:orange", linestyle=":", linewidth=1.2)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    words = f"memorizing the training set: {memorized:.3f}"
    cumulative.annotate(words, (1, memorized), (-4, 3), **place, fontsize=8, color="tab:orange", bbox=box)
    cumulative.set_ylim(bottom=0)
    save_figure(figure, path)


def bound_by_log_snr(path: Path, bins: Sequence[StepBin], title: str) -> None:
    """Plot bits per unit of λ against λ for each split, where area is a sum of L_t; beside it the gap of two splits."""
    bins = [row for row in bins if math.isfinite(row.log_snr_width)]
    splits = _by_split(bins)
    gap = "train" in splits and "test" in splits
    figure = Figure(figsize=(10.5 if gap else 7.4, 4.2), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2 if gap else 1, squeeze=False).flat)
    for split, rows in splits.items():
        edges = [rows[0].log_snr_high, *(row.log_snr_low for row in rows)]
        density = np.array([row.bits / row.log_snr_width for row in rows])
        error = np.array([row.stderr * row.steps / row.log_snr_width for row in rows])
        panels[0].stairs(density[::-1], edges[::-1], baseline=None, linewidth=1.8, color=COLOURS[split], label=split)
        _band(panels[0], edges[::-1], density[::-1], error[::-1], split)
    panels[0].set_ylabel("bits/dim per unit of λ")
    panels[0].set_title(title, fontsize=11)
    if splits:  # a chain of one step has no λ between its levels
        panels[0].legend(fontsize=9)
    if gap:
        _draw_gap(panels[1], splits["test"], splits["train"])
    clean, noisy = [row.log_snr_high for row in bins], [row.log_snr_low for row in bins if row.rate > 1e-5]
    for axes in panels:
        axes.set_xlim(max(clean, default=1.0) + 0.3, min(noisy, default=-1.0) - 0.3)
        axes.set_xlabel("λ, log signal-to-noise ratio (clean left, noise right)")
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def rate_distortion(path: Path, bins: Sequence[StepBin], title: str) -> None:
    """Plot the distortion of x̂ against the bits sent, and both against the step. Ho et al. (2020), figure 5."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    by_rate, by_step = figure.subplots(1, 2)
    for split, rows in _by_split(bins).items():
        rate, rmse = _column(rows, "rate"), _column(rows, "rmse_of_255")
        middle = [math.sqrt(row.first_step * (row.last_step + 1)) for row in rows]
        by_rate.plot(rate, rmse, marker=".", markersize=4, linewidth=1.4, color=COLOURS[split], label=split)
        by_step.plot(middle, rmse, linewidth=1.6, color=COLOURS[split], label=f"distortion, {split}")
        if split == bins[0].split:
            other = by_step.twinx()
            other.plot(middle, rate, linewidth=1.6, linestyle="--", color="tab:orange")
            other.set_ylabel(f"rate, {split} (dashed)  [bits/dim]", color="tab:orange")
    by_rate.set(xlabel="rate: bits sent from t = T on  [bits/dim]", ylabel="distortion: RMSE of $\\hat x$  [of 255]")
    by_step.set(xscale="log", xlabel="step t (t = 1: least noise)", ylabel="distortion: RMSE of $\\hat x$  [of 255]")
    by_rate.set_title(title, fontsize=11)
    for axes in (by_rate, by_step):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, loc="upper center")
    save_figure(figure, path)


def _draw_gap(axes: Axes, test: Sequence[StepBin], train: Sequence[StepBin]) -> None:
    """Plot test less training bits, summed from the noisy end to each λ: memorization shows here first."""
    (levels, sent, variance), (levels_train, sent_train, variance_train) = (_sent(rows) for rows in (test, train))
    gap = sent - np.interp(levels, levels_train, sent_train)
    error = np.sqrt(variance + np.interp(levels, levels_train, variance_train))
    axes.plot(levels, gap, color="tab:purple", linewidth=1.8)
    axes.fill_between(levels, gap - 2 * error, gap + 2 * error, color="tab:purple", alpha=0.15)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_ylabel("test minus train, summed from t = T on  [bits/dim]")
    axes.set_title("Where training images need fewer bits (± 2 standard errors)", fontsize=11)


def _sent(rows: Sequence[StepBin]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rising λ, with the bits sent from the noisy end up to it and their variance."""
    levels = np.array([rows[-1].log_snr_low, *(row.log_snr_high for row in rows[::-1])])
    sent = np.cumsum([0.0, *(row.bits for row in rows[::-1])])
    return levels, sent, np.cumsum([0.0, *((row.stderr * row.steps) ** 2 for row in rows[::-1])])


def _by_split(bins: Sequence[StepBin]) -> dict[str, list[StepBin]]:
    return {split: [row for row in bins if row.split == split] for split in dict.fromkeys(row.split for row in bins)}


def _edges(rows: Sequence[StepBin]) -> list[int]:
    return [*(row.first_step for row in rows), rows[-1].last_step + 1]


def _column(rows: Sequence[StepBin], name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in rows])


def _band(axes: Axes, edges: Sequence[float], values: np.ndarray, error: np.ndarray, split: str) -> None:
    """Shade two standard errors about stairs."""
    low, high = (np.append(side, side[-1]) for side in (values - 2 * error, values + 2 * error))
    positive = np.maximum(low, np.nanmax(values) * 1e-12) if axes.get_yscale() == "log" else low
    axes.fill_between(edges, positive, high, step="post", color=COLOURS[split], alpha=0.15, linewidth=0)
