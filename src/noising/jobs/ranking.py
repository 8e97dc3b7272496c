"""Which of several runs measured best, where their numbers can be compared at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["differing", "measurement", "verdict"]

HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "inception_score", "class_accuracy")
LOWER_IS_BETTER = ("bound", "fd", "kd", "fid", "kid", "fd_dinov2", "kd_dinov2")

Row = Mapping[str, Any]
"""Of one run: numbers by name, and what their cards say as "card NAME.entry"."""

_MODEL = ("checkpoint", "sha256", "step", "weights.updates", "weights.ema_updates")
_COST = ("evaluations", "evaluations_per_image")


def measurement(card: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a card says of how, not of which model nor of the cost: nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in card.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= measurement(value, f"{name}.")
        elif name not in (*_MODEL, *_COST):
            flat[name] = value
    return flat


def differing(name: str, rows: Sequence[Row], vary: Sequence[str]) -> list[str]:
    """The entries in which the cards of a number differ, but for those that are what is compared."""
    prefix = f"card {name}."
    entries = dict.fromkeys(key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix))
    return [
        entry
        for entry in entries
        if len({str(row.get(prefix + entry)) for row in rows}) > 1
        and not any(entry == free or entry.startswith(f"{free}.") for free in vary)
    ]


def verdict(name: str, rows: Sequence[Row], names: Sequence[str], vary: Sequence[str]) -> str:
    """The name of the best of the runs, or why there is none; "" for what is neither better nor worse."""
    short = name.rpartition("/")[2]
    sign = {**dict.fromkeys(LOWER_IS_BETTER, 1), **dict.fromkeys(HIGHER_IS_BETTER, -1)}.get(short)
    values = [row.get(name) for row in rows]
    if sign is None or not all(isinstance(value, int | float) for value in values):
        return ""
    if found := differing(name, rows, vary):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"not ranked: {found[0]}{more} differ" + ("" if more else "s")
    order = sorted(range(len(rows)), key=lambda i: sign * values[i])  # type: ignore[operator]
    first, second = order[:2]
    errors = [rows[i].get(f"{name}{error}") or 0.0 for i in (first, second) for error in ("_mc_se", "_image_se")]
    if abs(values[first] - values[second]) <= 2 * math.hypot(*errors):  # type: ignore[operator]
        return "no difference to be seen"
    return names[first]
