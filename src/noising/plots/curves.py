"""Learning curves: losses, bound and sample quality over optimizer steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from noising.plots.grids import label_plainly, save_figure
from noising.runs.declarations import Declaration
from noising.runs.rows import Row


class Panel(NamedTuple):
    """A number measured while training, and the same of real test images, if any."""

    name: str
    declaration: Declaration
    baseline: float | None


def learning_curves(path: Path, rows: Sequence[Row], baselines: Mapping[str, float], panels: Sequence[Panel]) -> None:
    """Plot the loss by quartile of t, and the validation bound with its baselines (bits/dim), by optimizer step.

    rows: the numbers of each step by name, with "step"; panels: further numbers, each drawn by itself.
    """

    def curve(column: str) -> tuple[list[int], list[float]]:
        logged = [row for row in rows if column in row]
        return [int(row["step"]) for row in logged], [row[column] for row in logged]

    count = 2 + len(panels)
    figure = Figure(figsize=(5 * count, 4.2), layout="constrained")
    loss, bound, *others = figure.subplots(1, count)
    for quarter in range(1, 5):
        steps, losses = curve(f"train/loss_q{quarter}")
        label = f"t in ({(quarter - 1) / 4:g}, {quarter / 4:g}]"
        marker = "o" if len(steps) < 5 else ""  # a thin line of few points would not be seen
        loss.plot(steps, losses, linewidth=0.8, alpha=0.9, label=label, marker=marker)
    loss.set(yscale="log", xlabel="optimizer step", ylabel="training loss")
    bound.plot(*curve("val/bound"), marker="o", color="tab:blue", label="validation, EMA weights")
    for (name, bits), style in zip(baselines.items(), ("--", ":"), strict=False):
        bound.axhline(bits, color="0.4", linestyle=style, label=name)
    bound.set(xlabel="optimizer step", ylabel="bound  [bits/dim]")
    for axes, panel in zip(others, panels, strict=True):
        steps, values = curve(panel.name)
        axes.plot(steps, values, marker="o", color="tab:blue", label="samples, EMA weights")
        if panel.baseline is not None:
            axes.axhline(panel.baseline, color="0.4", linestyle="--", label="real test images, as many as at the end")
        axes.set(xlabel="optimizer step", ylabel=panel.declaration.label)
        if panel.declaration.better == "lower" and min(values) > 0:
            axes.set_yscale("log")
            label_plainly(axes.yaxis)
    for axes in (loss, bound, *others):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)  # above all curves
    save_figure(figure, path)
