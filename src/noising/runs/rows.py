"""Rows of a table: a run as one row, nested entries flattened, and a CSV file that appears whole."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from noising.runs.folder import replacing

Row = dict[str, Any]
"""The entries of one run by the name of their column."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> Row:
    """Leaves of nested mappings, their keys joined by dots behind the prefix."""
    row: Row = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        row |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return row


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]], end: str = "\r\n") -> None:
    """Write a table whole or not at all, each line with that end."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([columns, *rows])
    with replacing(path) as file:
        file.write(text.getvalue().encode())
