"""The numbers of a run by optimizer step: metrics.jsonl, to which lines are added, and metrics.csv, made of it."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import IO

from noising.runs.folder import Run, replacing
from noising.runs.rows import write_csv

Row = dict[str, float]
"""The numbers of one step by name, after "step" itself."""


class Results:
    """A record of one line a call, which outlives a kill; `export` makes a table of it with one row a step.

    Only rank 0 may call the methods that write. Nothing is remembered here: every process reads what others wrote.
    """

    def __init__(self, run: Run) -> None:
        self.record, self.table = run.metrics_record, run.metrics
        self._mended = False  # whether the record ends in a whole line

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Add numbers to those of a step; one that the step has already is replaced."""
        if not self._mended:
            self.resume_from(math.inf)
        with open(self.record, "ab") as file:
            file.write(_line({"step": step, **numbers}))

    def rows(self) -> list[Row]:
        """One row a step, in the order in which the steps first came."""
        by_step: dict[float, Row] = {}
        if self.record.exists():
            with open(self.record, "rb") as file:
                for _, row in _whole_lines(file):
                    by_step.setdefault(row["step"], {}).update(row)
        return list(by_step.values())

    def resume_from(self, step: float) -> None:
        """Drop what was logged after `step`, and a last line that a kill has cut off."""
        self._mended = True
        if not self.record.exists():
            self._take_over_table()
        with open(self.record, "a+b") as file:
            file.seek(0)
            before = takewhile(lambda line: line[1]["step"] <= step, _whole_lines(file))
            file.truncate(sum(length for length, _ in before))

    def sync(self) -> None:
        """Wait until the record is on the disk."""
        if self.record.exists():
            with open(self.record, "rb") as file:
                os.fsync(file.fileno())

    def export(self) -> None:
        """Write the table: `step`, then the other columns in the order in which they first came."""
        if rows := self.rows():
            columns = dict.fromkeys(name for row in rows for name in row)
            write_csv(self.table, columns, ([row.get(name, "") for name in columns] for row in rows), end="\n")

    def _take_over_table(self) -> None:
        """Make the record of a run that has a table alone, as earlier versions left it."""
        with replacing(self.record) as record:
            if self.table.exists():
                whole, newline, _ = self.table.read_text().rpartition("\n")
                for cells in csv.DictReader(io.StringIO(whole + newline)):
                    record.write(_line({name: _number(cell) for name, cell in cells.items() if cell}))


def _line(row: Mapping[str, float]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _whole_lines(record: IO[bytes]) -> Iterator[tuple[int, Row]]:
    """Rows and the lengths of their lines, without a last one that a kill has cut off."""
    for line in record:
        if line.endswith(b"\n"):
            yield len(line), json.loads(line)


def _number(cell: str) -> float:
    return int(cell) if cell.lstrip("-").isdecimal() else float(cell)
