"""`compare`: what several runs measured, side by side; or the difference of two models' bounds, measured as one number.

Two evaluations of two models differ by both models' noise. Evaluated on the same images, times and noise, what both
find hard cancels, and the difference is known far better than either bound.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from noising.commands.devices import find_device
from noising.commands.tables import evaluations_bar, number
from noising.config.instantiate import make, nearest, require_whole
from noising.config.secrets import without_secrets
from noising.data.image_data import SPLITS
from noising.diffusion.drawing import in_evaluation
from noising.diffusion.likelihood.estimators import BoundEstimator
from noising.diffusion.likelihood.meter import evaluate_bound
from noising.diffusion.likelihood.terms import Difference
from noising.errors import ConfigError, config_errors
from noising.runs.folder import Run, replacing
from noising.runs.status import run_status
from noising.trained import TrainedRun, load

__all__ = ["compare", "differing", "measurement", "verdict"]


Row = dict[str, Any]
"""Of one run: numbers by name, and what their cards say as "card NAME.entry"."""
_NOT_SHOWN = ("_se", "_low", "_high", "_baseline")


def compare(cfg: DictConfig, run_dir: Path) -> None:
    """Read the runs' summaries into one table, or measure the difference of two."""
    if not OmegaConf.is_list(cfg.runs) or len(cfg.runs) < 2:
        raise ConfigError(f"runs must be two or more run folders, got {cfg.runs}: compare A B")
    if cfg.paired:
        _measure_difference(cfg, Run(run_dir))
    else:
        if not OmegaConf.is_list(cfg.vary):
            raise ConfigError(f"vary must be a list of entries of the cards, got {cfg.vary}: e.g. vary=[sampler,grid]")
        _read(list(cfg.runs), Run(run_dir), without_secrets(cfg), list(cfg.vary))


def _read(paths: list[str], run: Run, config: Any, vary: list[str]) -> None:
    """comparison.csv: a row a run, of the options and the numbers; the table shows what differs."""
    rows = [_row(path) for path in paths]
    names = dict.fromkeys(name for row in rows for name in row)
    _require_entries(vary, names)
    with run_status(run, config):
        text = io.StringIO()
        table = csv.DictWriter(text, list(names), restval="")
        table.writeheader()
        table.writerows(rows)
        with replacing(run.path / "comparison.csv") as file:
            file.write(text.getvalue().encode())
    console = Console(soft_wrap=True)
    options = [name for name in names if name.startswith("option ") and len({str(row.get(name)) for row in rows}) > 1]
    cards = [
        name
        for name in names
        if name.startswith("card ")
        and all(name.removeprefix("card ").partition(".")[0] in row for row in rows)  # a number that all runs have
        and len({str(row.get(name)) for row in rows}) > 1
    ]
    numbers = [name for name in names if "/" in name and not name.startswith(("option ", "card "))]
    shown = [name for name in numbers if not name.endswith(_NOT_SHOWN)]
    view = Table(title="runs side by side: the options that differ, and what was measured", title_justify="left")
    view.add_column("", overflow="fold")
    for path in paths:
        view.add_column(os.path.relpath(path), justify="right", overflow="fold")
    view.add_column("best", overflow="fold")
    relative = [os.path.relpath(path) for path in paths]
    for name in [*options, "status", *shown]:
        cells = [_cell(row, name) for row in rows]
        view.add_row(name.removeprefix("option "), *cells, verdict(name, rows, relative, vary))
    console.print(view)
    if cards:
        view = Table(title="measured differently: what the cards do not agree on", title_justify="left")
        for path in ("", *map(os.path.relpath, paths)):
            view.add_column(path, overflow="fold")
        for entry, values in _grouped(cards, rows):
            view.add_row(entry, *values)
        console.print(view)
    console.print(os.path.relpath(run.path / "comparison.csv"), highlight=False)


def _require_entries(vary: list[str], names: Iterable[str]) -> None:
    """Raise ConfigError for one that no card has."""
    entries = [name.partition(".")[2] for name in names if name.startswith("card ")]
    groups = {".".join(parts[: end + 1]) for parts in (e.split(".") for e in entries) for end in range(len(parts))}
    for free in vary:
        if free not in groups:
            right = nearest(str(free), groups)
            raise ConfigError(f"vary: no card has an entry {free}" + (f"; did you mean {right}?" if right else ""))


def _grouped(cards: list[str], rows: list[Row]) -> list[tuple[str, tuple[str, ...]]]:
    """Each entry once, with the numbers that it is of and what the runs' cards say there."""
    of: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in cards:
        number_, _, entry = name.removeprefix("card ").partition(".")
        of.setdefault((entry, tuple(str(row.get(name, "")) for row in rows)), []).append(number_)
    return [(f"{entry}, of {', '.join(numbers)}", values) for (entry, values), numbers in of.items()]


def _row(path: str) -> Row:
    run = Run(path)
    with config_errors("runs"):
        summary = run.summary
        if not summary:
            raise ConfigError(f"runs: {path} holds no summary.json: it is no run's folder, or has not begun")
        options = _flat(run.config, "option ")
    numbers = {key: value for key, value in summary.items() if "/" in key and not isinstance(value, Mapping)}
    cards = _flat({key: measurement(card) for key, card in summary.get("cards", {}).items()}, "card ")
    return {"run": path, **options, "status": run.status, **numbers, **cards}


def _flat(tree: Mapping[str, Any], prefix: str) -> Row:
    """Nested keys joined by dots."""
    flat: Row = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, float):
        words = "" if value is None else str(value)
        return words.rpartition(".")[2] if name.endswith("_target_") else words
    errors = [row.get(f"{name}{suffix}") for suffix in ("_mc_se", "_image_se")]
    return " ± ".join(number(part) for part in (value, *errors) if part is not None)


def _measure_difference(cfg: DictConfig, run: Run) -> None:
    if len(cfg.runs) != 2:
        raise ConfigError(f"paired=true compares two runs, got {len(cfg.runs)}")
    if cfg.split not in SPLITS:
        raise ConfigError(f"split must be test, train or val, got {cfg.split}")
    require_whole(cfg, "batch_size", 1)
    estimator = make(cfg.bound, "bound", BoundEstimator)
    device = find_device(cfg.device)
    first, second = (load(path) for path in cfg.runs)
    _require_same_images(first, second, cfg.split)
    terms = [trained.bound_terms(estimator.clip, device) for trained in (first, second)]
    units = {term.decoder.unit for term in terms}
    if len(units) > 1:
        raise ConfigError(f"runs: one bound is in {', the other in '.join(sorted(units))}: they cannot be compared")
    with config_errors("runs"):
        pair = Difference(*terms)
    with run_status(run, without_secrets(cfg)):
        with in_evaluation(first.denoiser), in_evaluation(second.denoiser), config_errors("bound"):
            images = first.image_set(cfg.split, device)
            meter = evaluate_bound(pair, estimator, images, cfg.batch_size, evaluations_bar)
        numbers = meter.compute()
        card = {
            "first": first.source,
            "second": second.source,
            "estimator": OmegaConf.to_container(cfg.bound),
            "split": cfg.split,
            "images": meter.images,
            "timesteps": pair.timesteps,
            "evaluations_of_each": meter.plan.evaluations,
            "unit": units.pop(),
            "precision": "float32",
        }
        shown = {name.replace("bound", "difference"): value for name, value in numbers.items() if "floor" not in name}
        run.write({f"{cfg.split}/{name}": value for name, value in shown.items()}, {f"{cfg.split}/difference": card})
    _print_difference(cfg, run, numbers, card)


def _require_same_images(first: TrainedRun, second: TrainedRun, split: str) -> None:
    one, other = (getattr(trained.data, split).pixels for trained in (first, second))
    if first.data.levels != second.data.levels or one.shape != other.shape or not torch.equal(one, other):
        raise ConfigError(f"runs: their {split} images are not the same ({first.data.name}, {second.data.name})")


def _print_difference(cfg: DictConfig, run: Run, numbers: Mapping[str, float], card: Mapping[str, Any]) -> None:
    console = Console(soft_wrap=True)
    first, second = (os.path.relpath(path) for path in cfg.runs)
    console.print(
        f"bound of {first} less that of {second}, {card['images']} {cfg.split} images, bits/dim", highlight=False
    )
    view = Table()
    for column in ("difference", "± Monte Carlo", "± images", "95% on these images", "95% on images like them"):
        view.add_column(column, justify="right")
    intervals = [
        f"{numbers[f'{name}_low']:+.4f} to {numbers[f'{name}_high']:+.4f}" for name in ("bound", "bound_population")
    ]
    view.add_row(
        f"{numbers['bound']:+.4f}", number(numbers["bound_mc_se"]), number(numbers["bound_image_se"]), *intervals
    )
    console.print(view)
    better = first if numbers["bound"] < 0 else second
    sure = numbers["bound_low"] > 0 or numbers["bound_high"] < 0
    words = f"{better} is the better one on these images" if sure else "neither is better by more than the interval"
    console.print(f"{words}; {card['evaluations_of_each']:,} network evaluations of each", highlight=False)
    console.print(os.path.relpath(run.summary_file), highlight=False)


HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "inception_score", "class_accuracy")
LOWER_IS_BETTER = ("bound", "fd", "kd", "fid", "kid", "fd_dinov2", "kd_dinov2")

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
