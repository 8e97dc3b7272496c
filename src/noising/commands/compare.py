"""`compare`: several runs side by side, by the options that differ and the numbers that were measured."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from noising.commands.loggers import open_results
from noising.commands.tables import cell, declarations, print_files, print_table
from noising.config.instantiate import nearest
from noising.config.secrets import masked, without_secrets
from noising.errors import ConfigError, config_errors
from noising.runs.declarations import ERRORS, Declarations, declaration, measurements
from noising.runs.folder import Run, run_folder
from noising.runs.rows import Row, flat, write_csv
from noising.runs.status import run_status


def compare(cfg: DictConfig, run_dir: Path) -> None:
    """Print the runs' summaries as one table, or with `paired` measure the difference of two bounds."""
    if cfg.paired:
        from noising.commands.paired import measure_difference  # here: it brings Lightning

        measure_difference(cfg, Run(run_dir))
        return
    runs = [str(run_folder(path)) for path in cfg.runs]
    summaries = [_summary(path) for path in runs]
    rows = [_row(path, summary) for path, summary in zip(runs, summaries, strict=True)]
    declared = declarations(summaries)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    _require_entries(cfg.vary, columns)
    paths = [os.path.relpath(path) for path in runs]
    differ = [name for name in columns if len({str(row.get(name)) for row in rows}) > 1]
    options = [name for name in differ if name.startswith("option ") and not name.startswith(_ADDRESSES)]
    cards = [name for name in differ if name.startswith("card ") and all(_number_of(name) in row for row in rows)]
    numbers = [name for name in columns if "/" in name and not name.startswith(("option ", "card "))]
    shown = [name for name in measurements(numbers) if _is_final(name) or declaration(name, declared).shown]
    title = "the options that differ between the runs, and the measured numbers"
    lines = [
        [
            name.removeprefix("option "),
            *(cell(row, name) for row in rows),
            verdict(name, rows, paths, cfg.vary, declared),
        ]
        for name in [*options, "status", *shown]
    ]
    table, results = run_dir / "comparison.csv", open_results(Run(run_dir), cfg, "compare")
    with run_status(results, without_secrets(cfg)):
        write_csv(table, columns, ([row.get(name, "") for name in columns] for row in rows))
        results.write_table("comparison", ("number", *paths, "best"), lines, 0)
    print_table(title, ("", *paths, "best"), lines, words=(0, len(paths) + 1))
    if cards:
        title = "the numbers were measured differently: the card entries that differ"
        print_table(title, ("", *paths), _grouped(cards, rows), words=range(len(paths) + 1))
    print_files(table)


def _summary(path: str) -> dict[str, Any]:
    with config_errors("runs"):
        summary = Run(path).summary
        if not summary:
            raise ConfigError(f"runs: {path} holds no summary.json: it is not the folder of a run that has begun")
    return summary


def _row(path: str, summary: Mapping[str, Any]) -> Row:
    """A run's options, status, numbers and cards: "option NAME", "status", "SPLIT/NAME", "card SPLIT/NAME.ENTRY"."""
    with config_errors("runs"):
        options = flat(masked(Run(path).config), "option ")
    numbers = {key: value for key, value in summary.items() if "/" in key and not isinstance(value, dict)}
    cards = flat({key: measurement(card) for key, card in summary.get("cards", {}).items()}, "card ")
    return {"run": path, **options, "status": summary.get("status", "none"), **numbers, **cards}


def _number_of(card_column: str) -> str:
    """Name of the number that an entry of a card is of."""
    return card_column.removeprefix("card ").partition(".")[0]


def _require_entries(vary: Iterable[str], names: Iterable[str]) -> None:
    """Raise ConfigError for an entry that no card has."""
    entries = [name.partition(".")[2] for name in names if name.startswith("card ")]
    groups = {".".join(parts[: end + 1]) for parts in (e.split(".") for e in entries) for end in range(len(parts))}
    for free in vary:
        if free not in groups:
            right = nearest(str(free), groups)
            hint = f"; did you mean {right}?" if right else ""
            raise ConfigError(f"vary={free}: no card has an entry of this name{hint}")


def _grouped(cards: Sequence[str], rows: Sequence[Row]) -> list[list[str]]:
    """Rows of each entry once: its name with the numbers that it is of, then what the cards of the runs say."""
    numbers: dict[tuple[str, ...], list[str]] = {}
    for name in cards:
        entry = name.removeprefix("card ").partition(".")[2]
        numbers.setdefault((entry, *(str(row.get(name, "")) for row in rows)), []).append(_number_of(name))
    return [[f"{entry}, of {', '.join(names)}", *values] for (entry, *values), names in numbers.items()]


_MODEL = ("checkpoint", "images_from", "sha256", "step", "weights.updates", "weights.ema_updates")
_COST = ("evaluations", "evaluations_per_image")


def measurement(card: Mapping[str, Any]) -> Row:
    """Entries of a card, flattened, that say how was measured: not of which model, nor at what cost."""
    measured = {name: value for name, value in card.items() if name != "augmentation"}
    return {name: value for name, value in flat(measured).items() if name not in (*_MODEL, *_COST)}


def _differing(name: str, rows: Sequence[Row], vary: Sequence[str]) -> list[str]:
    """Entries in which the cards of a number differ, without those that `vary` names as what is compared."""
    prefix = f"card {name}."
    entries = dict.fromkeys(key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix))
    return [
        entry
        for entry in entries
        if len({str(row.get(prefix + entry)) for row in rows}) > 1
        and not any(f"{entry}.".startswith(f"{free}.") for free in vary)
    ]


_ADDRESSES = ("option logger", "option tags")
"""Columns of options that say where numbers go, not how the run was made."""


def _is_final(name: str) -> bool:
    """Whether a number is of the end of a run, not of the course of its training."""
    return not name.startswith(("train/", "val/"))


def verdict(name: str, rows: Sequence[Row], names: Sequence[str], vary: Sequence[str], declared: Declarations) -> str:
    """Name of the best run, or the reason why none is; "" for a number that is neither better nor worse."""
    values = [row.get(name) for row in rows] if _is_final(name) else []
    sign = {"lower": 1, "higher": -1}.get(declaration(name, declared).better or "", 0)
    if not sign or not values or not all(isinstance(value, int | float) for value in values):
        return ""
    if found := _differing(name, rows, vary):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"not ranked: {found[0]}{more} differ" + ("" if more else "s")
    order = sorted(range(len(rows)), key=lambda i: sign * values[i])  # type: ignore[operator]
    first, second = order[:2]
    errors = [rows[i].get(f"{name}{error}") or 0.0 for i in (first, second) for error in ERRORS]
    if abs(values[first] - values[second]) <= 2 * math.hypot(*errors):  # type: ignore[operator]
        return "no significant difference"
    return names[first]
