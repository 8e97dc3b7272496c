"""The bar of a job without a Trainer: network evaluations made, of those planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["evaluations_bar"]


@contextmanager
def evaluations_bar(total: int) -> Iterator[Callable[[float], None]]:
    """Gives what is told how many more network evaluations were made."""
    columns = (TextColumn("network evaluations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda more: progress.advance(task, more)
