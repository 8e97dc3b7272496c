"""Learning curves: losses, bound and sample quality over optimizer steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from noising.plots.grids import save_figure
from noising.runs.rows import Row


def learning_curves(
    path: Path, rows: Sequence[Row], baselines: Mapping[str, float], distance: str | None, yardstick: float | None
) -> None:
    """Plot the loss by quartile of t, and the validation bound with its baselines (bits/dim), by optimizer step.

    rows: the numbers of each step by name, with "step"; distance: the name of a Fréchet distance, drawn as well, with
    that of real images.
    """

    def curve(column: str) -> tuple[list[int], list[float]]:
        logged = [row for row in rows if column in row]
        return [int(row["step"]) for row in logged], [row[column] for row in logged]

    panels = 2 if distance is None else 3
    figure = Figure(figsize=(5 * panels, 4.2), layout="constrained")
    loss, bound, *others = figure.subplots(1, panels)
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
    for quality in others:
        quality.plot(*curve(str(distance)), marker="o", color="tab:blue", label="samples, EMA weights")
        if yardstick is not None:
            quality.axhline(yardstick, color="0.4", linestyle="--", label="real test images, at the end's count")
        quality.set(yscale="log", xlabel="optimizer step", ylabel="Fréchet distance to training images")
        quality.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        quality.yaxis.set_major_formatter("{x:g}")
        quality.minorticks_off()
    for axes in (loss, bound, *others):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)  # above all curves
    save_figure(figure, path)
