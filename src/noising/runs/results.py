"""The one way that a number goes: to the loggers, to metrics.csv by optimizer step, and to summary.json.

metrics.jsonl is the record of all numbers, to which lines are added, so that it outlives a kill; metrics.csv and the
numbers of summary.json are made of it when the run ends, those with a card at once.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from noising.config.secrets import masked
from noising.runs.declarations import Declarations, declaration, from_summary, measurements, to_summary
from noising.runs.folder import Run, replacing
from noising.runs.rows import flat, write_csv

if TYPE_CHECKING:
    import numpy as np  # not at run time: --help needs none

Row = dict[str, float]
"""The numbers of one step by name, after "step" itself."""
Card = Mapping[str, Any]
"""All that a number depends on: how it was measured, and of which model."""
RESERVED = ("step", "status", "cards", "declared", "ended", "error")
"""Names that the files use themselves."""


class NumberLogger(Protocol):
    """A logger, such as Lightning's.

    It may have `declare`, `record_image`, `record_table`, `record_chart` and `close` too, as those of
    noising.training.loggers have.
    """

    def log_metrics(self, numbers: dict[str, float], step: int, /) -> None: ...

    def finalize(self, status: str, /) -> None: ...


class Results:
    """The numbers of a run, by name and optimizer step, and its pictures for the loggers.

    Only rank 0 may call the methods that write. Nothing but the loggers is remembered here: every process reads what
    others wrote.
    """

    def __init__(self, run: Run, loggers: Sequence[NumberLogger] = ()) -> None:
        self.run, self.loggers = run, loggers
        self.record, self.table = run.metrics_record, run.metrics
        self._mended = False  # whether the record ends in a whole line
        self._held: list[Row] = []  # rows that could not be added to it
        self._known: set[str] = set()  # names that the loggers have met

    # --- what writers call

    def declare(self, declared: Declarations) -> None:
        """Store the meaning of numbers, by their names without the split, before they are written."""
        if declared.items() - from_summary(self.run.summary).items():
            self.run.update({}, declared=to_summary(declared))

    def write(self, name: str, value: float, step: int, card: Card | None = None) -> None:
        """Write one number, "split/name", as of an optimizer step; the card says how it was measured.

        A number that the step has already is replaced. Raises ValueError for a name that summary.json uses itself.
        """
        self.write_all({name: value}, step, {} if card is None else {name: card})

    def write_all(self, numbers: Mapping[str, float], step: int, cards: Mapping[str, Card] | None = None) -> None:
        """Write the numbers of one step together, some of them with cards, by name."""
        plain = self.add(numbers, step)
        if cards:
            self.run.update(plain, cards=cards)
        if self.loggers:
            self._log(plain, step, with_cards=bool(cards))

    def _log(self, numbers: Row, step: int, with_cards: bool) -> None:
        """Give numbers to the loggers: first the declarations of those they have not met, at last all cards so far."""
        if new := [name for name in measurements(numbers) if name not in self._known]:
            declared = from_summary(self.run.summary)
            for name in new:
                self._call_loggers("declare", name, declaration(name, declared))
            self._known |= {*new}
        self._call_loggers("log_metrics", numbers, step)
        if with_cards:
            every = self.run.summary["cards"]
            entries = [(name, *entry) for name, card in every.items() for entry in flat(masked(card)).items()]
            self._call_loggers("record_table", "cards", ("number", "entry", "value"), entries, step)

    def write_image(self, key: str, image: "Path | np.ndarray", step: int, caption: str = "") -> None:
        """Give a picture to the loggers: a file, or an array (H, W[, 3]) of uint8."""
        if any(hasattr(logger, "record_image") for logger in self.loggers):
            import numpy as np  # here: most runs have no such logger
            from PIL import Image

            if isinstance(image, Path) and not image.exists():  # it could not be written
                return
            with Image.open(image) if isinstance(image, Path) else Image.fromarray(image) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._call_loggers("record_image", key, pixels, step, caption)

    def write_table(self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int) -> None:
        """Give a table to the loggers."""
        self._call_loggers("record_table", key, columns, list(rows), step)

    def write_chart(
        self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str, step: int
    ) -> None:
        """Give a chart to the loggers. columns: names of x and y, and of the words that tell the lines apart."""
        self._call_loggers("record_chart", key, columns, list(rows), title, step)

    def _call_loggers(self, method: str, *facts: Any) -> None:
        for logger in self.loggers:
            if (take := getattr(logger, method, None)) is not None:
                with self.run.writing(self._place(logger), final=True):
                    take(*facts)

    def _place(self, logger: NumberLogger) -> Path:
        """The name of a logger's files, of which only the logger knows where they are."""
        return self.run.path / type(logger).__name__.lower()

    # --- the record

    def add(self, numbers: Mapping[str, float], step: int) -> Row:
        """Add a line to the record alone; returns the numbers as plain ones. Raises ValueError for a reserved name."""
        if taken := [name for name in numbers if name in RESERVED]:
            raise ValueError(f"a number must not be named {taken[0]}: the run's files use that name themselves")
        plain = {name: _plain(value) for name, value in numbers.items()}
        self._held.append({"step": step, **plain})
        self._add_held()
        return plain

    def _add_held(self) -> None:
        """Add the rows that are not in the record yet; if that fails they are held until the next time."""
        with self.run.writing(self.record):
            if not self._mended:
                self._drop_after(math.inf)
            self._mended = False  # if a part of a line is all that is written
            if self._held:
                with open(self.record, "ab") as file:
                    file.write(b"".join(map(_line, self._held)))
            self._mended, self._held = True, []

    def rows(self) -> list[Row]:
        """One row a step, in the order in which the steps first came."""
        by_step: dict[float, Row] = {}
        for row in self._lines():
            by_step.setdefault(row["step"], {}).update(row)
        return list(by_step.values())

    def latest(self) -> Row:
        """The last value of each number."""
        found = {name: value for row in self._lines() for name, value in row.items()}
        found.pop("step", None)
        return found

    def resume_from(self, step: float) -> None:
        """Drop what was recorded after `step`, and a last line that a kill has cut off."""
        self._held = [row for row in self._held if row["step"] <= step]
        self._drop_after(step)
        self._mended = True

    def _drop_after(self, step: float) -> None:
        if not self.record.exists():
            self._take_over_table()
        with open(self.record, "a+b") as file:
            file.seek(0)
            before = takewhile(lambda line: line[1].get("step", -math.inf) <= step, _whole_lines(file))
            file.truncate(sum(length for length, _ in before))

    def sync(self) -> None:
        """Wait until the record is on the disk."""
        self._add_held()
        if self._held:
            return
        with self.run.writing(self.record), suppress(FileNotFoundError), open(self.record, "rb") as file:
            os.fsync(file.fileno())

    def export(self) -> None:
        """Write the table: `step`, then the other columns in the order in which they first came."""
        self._add_held()
        if not (rows := self.rows()):
            return
        columns = dict.fromkeys(name for row in rows for name in row)
        with self.run.writing(self.table):
            write_csv(self.table, columns, ([row.get(name, "") for name in columns] for row in rows), end="\n")

    def finish(self, status: str) -> None:
        """Write the table, and into the summary the last value of every number and the status."""
        self.export()
        self.run.finish(status, self.latest())

    def close_loggers(self, failed: bool = False) -> None:
        """Write what is buffered, and end W&B's run, since the next job of a sweep begins its own.

        Lightning's `finalize` cannot end it: it comes after every fit and every test.
        """
        self._call_loggers("finalize", "failed" if failed else "success")
        self._call_loggers("close", failed)

    def _lines(self) -> list[Row]:
        rows: list[Row] = []
        with suppress(FileNotFoundError), open(self.record, "rb") as file:
            rows = [row for _, row in _whole_lines(file) if row]
        return rows + self._held

    def _take_over_table(self) -> None:
        """Make the record of a run that has a table alone, as earlier versions left it."""
        with replacing(self.record) as record:
            if self.table.exists():
                whole, newline, _ = self.table.read_text(encoding="utf-8").rpartition("\n")
                for cells in csv.DictReader(io.StringIO(whole + newline)):
                    record.write(_line({name: _number(cell) for name, cell in cells.items() if cell}))


def _plain(value: Any) -> float:
    """A number, or a tensor or array of one, as int or float."""
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int) else float(number)


def _line(row: Mapping[str, float]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _whole_lines(record: IO[bytes]) -> Iterator[tuple[int, Row]]:
    """Rows and the lengths of their lines, without a last one that a kill has cut off; a damaged line has no row."""
    for line in record:
        if line.endswith(b"\n"):
            yield len(line), _row(line)


def _row(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    whole = isinstance(row, dict) and "step" in row and all(isinstance(value, int | float) for value in row.values())
    return row if whole else {}


def _number(cell: str) -> float:
    return int(cell) if cell.lstrip("-").isdecimal() else float(cell)
