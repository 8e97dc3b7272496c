"""Quality of samples over a sweep of samplers, with the cost beside it."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from noising.plots.grids import save_figure
from noising.runs.rows import Row

_EVALUATIONS, _ACCURACY = "test/evaluations_per_image", "test/class_accuracy"
_DISTANCES = ("test/fd", "test/fid", "test/fd_dinov2")
_PANELS = (
    ("test/fd", "FD to training images", 1.0),
    ("test/fid", "FID to training images", 1.0),
    ("test/fd_dinov2", "FD-DINOv2 to training images", 1.0),
    (_ACCURACY, "part that shows the class asked for", 1.0),
    ("test/seconds_per_image", "cost  [ms an image]", 1e-3),
)


def measured(table: list[Row]) -> list[Row]:
    """Rows of the jobs that evaluated samples."""
    return [row for row in table if any(name in row for name in _DISTANCES)]


def series(table: list[Row]) -> tuple[str, dict[str, list[Row]]]:
    """Column of the horizontal axis, and the sorted rows of each line by the options that tell the lines apart.

    The axis is network evaluations, or else a number that was swept and changes none, such as a guidance scale.
    """
    names = list(table[0])
    swept = [name for name in names[: names.index("status")] if len({row.get(name) for row in table}) > 1]
    numeric = [name for name in swept if all(_is_number(row.get(name)) for row in table)]
    chosen = "sampler.steps" if "sampler.steps" in numeric else numeric[-1] if numeric else None
    axis = _EVALUATIONS if chosen in ("sampler.steps", None) else chosen
    others = [name for name in swept if name != chosen]
    lines: dict[str, list[Row]] = {}
    for row in table:
        label = ", ".join(str(row[name]) if name == "sampler" else f"{name}={row[name]}" for name in others)
        lines.setdefault(label, []).append(row)
    for line in lines.values():
        line.sort(key=lambda row: float(row[axis]))
    return axis, lines


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def draw(path: Path, table: list[Row]) -> None:
    """Plot each metric against the axis, with its standard errors, and that of real test images as a dashed line."""
    axis, lines = series(table)
    panels = [panel for panel in _PANELS if any(panel[0] in row for row in table)]
    figure = Figure(figsize=(4.4 * len(panels) + 0.6, 4.0), layout="constrained")
    for axes, (key, words, unit) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for label, rows in lines.items():
            line = [row for row in rows if key in row]
            errors = [row.get(f"{key}_mc_se", 0.0) / unit for row in line]
            places, values = [float(row[axis]) for row in line], [row[key] / unit for row in line]
            axes.errorbar(places, values, errors, marker="o", markersize=4, capsize=2, label=label or None)
        if (baseline := table[0].get(f"{key}_baseline")) is not None:
            axes.axhline(baseline, color="0.4", linestyle="--", linewidth=1.2, label="real test images")
        axes.set(xlabel="network evaluations an image" if axis == _EVALUATIONS else axis, ylabel=words)
        logarithmic = axis == _EVALUATIONS and key != _ACCURACY
        axes.set(xscale="log" if axis == _EVALUATIONS else "linear", yscale="log" if logarithmic else "linear")
        if not logarithmic:
            axes.set_ylim(bottom=0)
        _plain_numbers(axes)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].legend(fontsize=9)
    save_figure(figure, path)


def _plain_numbers(axes: Axes) -> None:
    """Label 20 and not 2 · 10¹, at 1, 2 and 5 of every decade, and in between on axes of less than a decade."""
    for place in (axes.xaxis, axes.yaxis):
        if place.get_scale() == "log":
            lowest, highest = place.get_view_interval()
            within = (1.5, 2.5, 3.0, 4.0, 7.0) if highest < 10 * lowest else ()
            place.set_major_locator(LogLocator(subs=sorted((1.0, 2.0, 5.0, *within))))
            place.set_minor_locator(NullLocator())
            place.set_major_formatter("{x:g}")
