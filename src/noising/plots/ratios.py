"""Ratios of a benchmark, each with its range over repetitions, beside 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from noising.plots.grids import save_figure


class RatioRange(NamedTuple):
    """A median of ratios, and the least and the greatest of them."""

    title: str
    median: float
    least: float
    greatest: float


def draw(path: Path, ratios: Sequence[RatioRange], unit: str) -> None:
    """Plot the ratios on a logarithmic axis, one a line, the first on top; unit: what they are."""
    figure = Figure(figsize=(7.0, 0.32 * len(ratios) + 1.1), layout="constrained")
    axes = figure.subplots()
    for line, ratio in enumerate(ratios):
        axes.plot([ratio.least, ratio.greatest], [line, line], color="tab:blue", linewidth=1.5)
        axes.plot(ratio.median, line, "o", color="tab:blue")
    axes.axvline(1, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel=unit, yticks=range(len(ratios)), yticklabels=[ratio.title for ratio in ratios])
    axes.xaxis.set_major_locator(LogLocator(subs=(0.5, 0.7, 1, 1.5, 2, 3, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_yaxis()
    save_figure(figure, path)
