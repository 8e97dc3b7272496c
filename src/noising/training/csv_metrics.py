"""metrics.csv: the record of a run's metrics that needs no service and no reader but a spreadsheet's."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from noising.training.run import Run, replacing

__all__ = ["CSVMetrics"]


class CSVMetrics(Logger):
    """metrics.csv: one row a step, first column `step`, the others as metrics come up. It outlives a resume.

    What is logged at one step, in several calls, is one row, written when the next step comes, on `finalize`
    and before every checkpoint: a kill loses at most the row that is being made.
    """

    def __init__(self, run: Run, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.path = run.metrics
        self._columns: list[str] | None = None  # of the file; None: not looked at yet
        self._step: int | None = None
        self._row: dict[str, str] = {}
        self._changed = False
        self._at: int | None = None  # the byte where the row of `_step` lies in the file already

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = 0 if step is None else int(step)
        if step != self._step:
            self._write_row()
            self._step, self._row, self._at = step, {}, None
        for name, value in metrics.items():
            if name not in ("epoch", "step"):
                self._row[name] = repr(float(value)) if not isinstance(value, int) else str(value)
                self._changed = True

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Drops the rows after `step` (of what will be done again) and keeps every byte of the others.

        If the last row kept is of `step` itself, what is logged at it again is merged into it.
        """
        self._step, self._row, self._changed, self._at = None, {}, False, None
        self._columns = None
        lines = self._whole_lines()
        if not lines:
            return
        kept = [line for line in lines[1:] if int(line.split(b",", 1)[0]) <= step]
        with replacing(self.path) as file:
            file.write(b"".join([lines[0], *kept]))
        self._columns = _cells(lines[0])
        if kept and int(kept[-1].split(b",", 1)[0]) == step:
            cells = zip(self._columns[1:], _cells(kept[-1])[1:], strict=True)
            self._step, self._row = step, {name: cell for name, cell in cells if cell}
            self._at = len(lines[0]) + sum(map(len, kept[:-1]))

    @rank_zero_only
    def save(self) -> None:
        """Writes the row being made. If more is logged at its step, it is written again in its place."""
        self._write_row()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write_row()

    def _whole_lines(self) -> list[bytes]:
        """The lines of the file, without one that a crash has cut off."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def _write_row(self) -> None:
        if self._step is None or not self._changed:
            return
        if self._columns is None:
            lines = self._whole_lines()
            self._columns = _cells(lines[0]) if lines else []
        if new := [name for name in self._row if name not in self._columns]:
            self._widen(new)
        row = _line([str(self._step), *(self._row.get(name, "") for name in self._columns[1:])])
        with open(self.path, "r+b") as file:
            self._at = file.seek(0, io.SEEK_END) if self._at is None else file.seek(self._at)
            file.write(row)
            file.truncate()
        self._changed = False

    def _widen(self, new: list[str]) -> None:
        assert self._columns is not None
        lines = self._whole_lines()
        before = self._columns or ["step"]
        self._columns = [*before, *new]
        rows = lines[1:]
        if self._at is not None:  # the row being made is the last one: the caller writes it again
            rows = rows[:-1]
        tail = b"," * len(new) + b"\n"
        content = b"".join([_line(self._columns), *(row[:-1] + tail for row in rows)])
        with replacing(self.path) as file:
            file.write(content)
        self._at = None


def _line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode()]))
