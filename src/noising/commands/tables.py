"""Printing for commands: tables, numbers with their errors, files, and a bar of network evaluations."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from noising.errors import encodable, printable
from noising.runs.declarations import ERRORS, Declaration, Declarations, declaration, from_summary, measurements
from noising.runs.folder import Run, reading_summary
from noising.runs.rows import Row


def print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    words: Sequence[int] = (0,),
    min_width: int = 0,
) -> None:
    """Print rows under their columns: those at the places `words` to the left, numbers to the right."""
    heading = None if title is None else Text(printable(title), style="table.title")
    table = Table(title=heading, title_justify="left", show_header=any(columns))
    for place, column in enumerate(columns):
        table.add_column(literal(column), justify="left" if place in words else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(literal, row))
    console = Console(soft_wrap=True, width=max(Console().width, min_width) if min_width else None)
    console.print(table)


def literal(text: str | Text) -> Text:
    """A cell that shows the text as it is: none of rich's markup, nothing that a terminal would obey.

    It is spelt as the stream will show it, so that a column is as wide as what stands in it.
    """
    return text if isinstance(text, Text) else Text(encodable(printable(text), sys.stdout.encoding))


def relative(path: str | Path) -> str:
    """A path from the current folder, printable."""
    return printable(os.path.relpath(path))


def print_files(*files: str | Path) -> None:
    """Print where files lie, a line each."""
    for file in files:
        print(relative(file))


def number(value: float | None) -> str:
    """Four places, or the first two digits of what is smaller; None is a number that was not finite."""
    if value is None:
        return "nan"
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"


def cell(row: Row, name: str) -> str:
    """An entry of a row: a number with its standard errors, a class by its name, other words as they are."""
    value = row.get(name)
    if isinstance(value, float):
        errors = (row.get(f"{name}{error}") for error in ERRORS)
        return " ± ".join([number(value), *(number(error) for error in errors if error)])
    words = "" if value is None else str(value)
    return words.rpartition(".")[2] if name.endswith("_target_") else words


@contextmanager
def evaluations_bar(total: int) -> Iterator[Callable[[float], None]]:
    """Show a bar of `total` network evaluations, and yield the function that advances it by a number of them."""
    from noising.training.progress import (  # here: it brings Lightning, which tables do without
        draws_bars,
        error_console,
    )

    columns = (TextColumn("network evaluations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = error_console()
    drawn = draws_bars(console)
    if not drawn:  # a log file gets a line at the start, in place of a bar at the end
        console.print(f"{total:,} network evaluations", highlight=False, soft_wrap=True)
    with Progress(*columns, console=console, disable=not drawn) as progress:
        task = progress.add_task("", total=total)
        yield lambda more: progress.advance(task, more)


def declarations(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Declaration]:
    """The declarations of some runs' numbers; for a run of an earlier version, which stored none, those of today."""
    found: dict[str, Declaration] = {}
    if any("declared" not in summary for summary in summaries):
        from noising.metrics.quality import FEATURE_NUMBERS
        from noising.training.validation import bound_declarations  # here: they bring Lightning

        found |= bound_declarations("bits/dim") | FEATURE_NUMBERS
    for summary in summaries:
        found |= from_summary(summary)
    return found


def print_summary(run: Run) -> None:
    """Print a run's numbers with their errors, and where its files lie. Raises ConfigError for a damaged summary."""
    with reading_summary(run):
        _print_summary(run)


def _print_summary(run: Run) -> None:
    summary = run.summary
    cards = summary.get("cards", {})
    declared = declarations([summary])
    for split in sorted(name.removesuffix("/bound") for name in cards if name.endswith("/bound")):
        _print_bound(summary, split, declared)
    if of_samples := {name: card for name, card in cards.items() if "samples" in card}:
        prefixes = tuple(of_samples)
        shown = {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith(prefixes)}
        print_quality(shown, next(iter(of_samples.values())), declared)
    if skipped := summary.get("train/skipped_steps"):
        print(f"steps left out, since their gradients were not finite: {printable(skipped)}")
    if "train/images_per_second" in summary:
        print(f"trained at {summary['train/images_per_second']:.0f} images/s")
    print()
    figures = (run.bound_by_step_figure, run.bound_by_log_snr_figure, run.rate_distortion_figure, run.learning_curves)
    pictures = (run.samples_image, run.neighbours_image, run.reverse_process, *figures)
    print_files(*(file for file in (*pictures, run.last_checkpoint, run.summary_file) if file.exists()))
    if reason := summary.get("ended"):
        print(f"training ended {printable(reason)}")


_TERMS = {"bound": "", "prior": "  ", "steps": "  ", "decoder": "  ", "decoder_floor": "    "}
_YARDSTICKS = ("histogram_baseline", "uniform_baseline")


def _print_bound(summary: Mapping[str, Any], split: str, declared: Declarations) -> None:
    card = summary["cards"][f"{split}/bound"]
    found = {name.removeprefix(f"{split}/"): value for name, value in summary.items() if name.startswith(f"{split}/")}
    # 0 as earlier versions wrote it
    lost = bool(found.get("bound_mc_se")) and not found.get("bound_image_se", True) and card.get("images", 0) > 1
    shown = found | {"bound_image_se": None} if lost else found
    rows = _TERMS | dict.fromkeys(_YARDSTICKS, "")
    print_table(
        f"{card.get('data', '')} {split} set, {card.get('images', 0)} images",
        ("bits/dim", "value", "± Monte Carlo", "± images"),
        [
            _row(f"{indent}{declaration(name, declared).title}", shown, name, ERRORS)
            for name, indent in rows.items()
            if name in shown
        ],
    )
    if lost:
        print(
            "the Monte Carlo error hides how far the images differ, so there is no interval for new images: use a "
            "larger bound.times, or a smaller bound.stderr"
        )
    for words, name in (("for these images", "bound"), ("for new images", "bound_population")):
        low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
        if low is not None and high is not None and not (lost and name == "bound_population"):
            print(f"95% interval of the bound {words}: {low:.4f} to {high:.4f}")
    words = (
        f"{card['estimator']} estimate, {card['evaluations']:,} network evaluations (the full sum takes "
        f"{card['evaluations_of_the_full_sum']:,}), clip {card['clip']}, T = {card['timesteps']}, "
        f"EMA weights of step {card['step']}; ± is one standard error"
    )
    if known := card.get("bits_of_the_class"):
        words += f"; the bits are given the class, which would cost at most {known:.3f} more"
    print(printable(words))
    if card.get("limited_to_the_full_sum"):
        print(printable(limited_words(card["stderr"], found["bound_mc_se"])))


def limited_words(wanted: float, reached: float) -> str:
    """A line on a standard error that would cost more than all terms: the error that was reached, in bits/dim."""
    return (
        f"bound.stderr={wanted:g} would cost more than all terms of all images, so the evaluation stopped at that "
        f"cost, with ± {number(reached)}"
    )


def _row(words: str, numbers: Mapping[str, float | None], name: str, beside: Sequence[str]) -> list[str]:
    """Cells of a number and of those beside it, blank where there is none."""
    others = (numbers.get(f"{name}{suffix}") for suffix in beside)
    return [words, number(numbers[name]), *("" if other is None else number(other) for other in others)]


def print_quality(numbers: Mapping[str, float], card: Mapping[str, Any], declared: Declarations) -> None:
    """Print the numbers of a SampleQuality and what their card says."""
    if "sampler" in card:
        sampler = card["sampler"]["_target_"].rpartition(".")[2]
        origin = f"by {sampler}, {card['sampler']['steps']} steps"
    else:
        origin = f"of {card['images_from']}"
    print_table(
        f"{card['repeats']} x {card['samples']} samples {origin}",
        ("", "value", "± Monte Carlo", "test images"),
        [
            _row(declaration(name, declared).label, numbers, name, ("_mc_se", "_baseline"))
            for name in measurements(numbers)
        ],
    )
    if reference := card.get("reference"):
        split = f" {reference['split']}" if "split" in reference else ""
        mirrored = ", each also mirrored" if reference.get("flips") else ""
        features = f" in the features of {card['features']}" if "features" in card else ""
        if "made_by" in reference:
            real = f"the statistics in {reference['file']}, as of {reference['made_by']},"
        else:
            real = f"{reference['images']}{split} images{mirrored}"
        print(printable(f"against {real}{features}; "), end="")
    weights = f"EMA weights of step {card['step']}; " if "step" in card else ""
    print(printable(f"{weights}± is one standard error"))
