"""Quality of samples over a sweep of samplers, with the cost beside it."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from noising.plots.grids import save_figure
from noising.runs.declarations import Declarations, declaration, measurements
from noising.runs.rows import Row

_EVALUATIONS = "test/evaluations_per_image"


def measured(table: list[Row]) -> list[Row]:
    """Rows of the jobs that evaluated samples."""
    return [row for row in table if _EVALUATIONS in row]


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


def draw(path: Path, table: list[Row], declared: Declarations) -> None:
    """Plot each metric against the axis, with its standard errors, and that of real test images as a dashed line."""
    axis, lines = series(table)
    numbers = measurements(dict.fromkeys(name for row in table for name, value in row.items() if type(value) is float))
    panels = {name: declaration(name, declared) for name in numbers if name.startswith("test/") and name != axis}
    panels = {name: one for name, one in panels.items() if one.shown and name != _EVALUATIONS}
    figure = Figure(figsize=(4.4 * len(panels) + 0.6, 4.0), layout="constrained")
    for axes, (key, one) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, rows in lines.items():
            line = [row for row in rows if key in row]
            errors = [row.get(f"{key}_mc_se", 0.0) for row in line]
            places, values = [float(row[axis]) for row in line], [row[key] for row in line]
            axes.errorbar(places, values, errors, marker="o", markersize=4, capsize=2, label=label or None)
        if (baseline := table[0].get(f"{key}_baseline")) is not None:
            axes.axhline(baseline, color="0.4", linestyle="--", linewidth=1.2, label="real test images")
        axes.set(xlabel="network evaluations per image" if axis == _EVALUATIONS else axis, ylabel=one.label)
        logarithmic = axis == _EVALUATIONS and one.better != "higher"
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
