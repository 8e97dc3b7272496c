"""What a sweep leaves: a folder a job, and sweep.csv, one row a job."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

__all__ = ["Row", "columns", "rows", "write_csv"]

Row = dict[str, Any]


def rows(sweep: Path) -> list[Row]:
    """One row a job, by number: its overrides, the numbers of its summary.json, its status, its folder's
    name.

    A job without a summary.json has the status "failed": it ended before there was anything to say.
    """
    jobs = [path.parent.parent for path in sweep.glob("*/.hydra/overrides.yaml")]
    table = []
    for job in sorted(jobs, key=_number):
        row: Row = {}
        for override in OmegaConf.load(job / ".hydra" / "overrides.yaml"):
            key, _, value = str(override).partition("=")
            if key != "resume":
                row[key.lstrip("+")] = value
        summary = _summary(job / "summary.json")
        row["status"] = summary.get("status", "failed")
        numbers = {key: value for key, value in summary.items() if type(value) in (int, float)}
        row |= {key: value for key, value in numbers.items() if key not in row}
        row["folder"] = job.name
        table.append(row)
    return table


def _number(job: Path) -> tuple[int, str]:
    number = job.name.partition("_")[0]
    return (int(number) if number.isdigit() else 0, job.name)


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def columns(table: list[Row]) -> list[str]:
    """Every key once: overrides, status, numbers, folder, each kind in the order in which it first comes."""
    names = dict.fromkeys(name for row in table for name in row)
    before = [n for n in names if any(n in row and list(row).index(n) < list(row).index("status") for row in table)]
    after = [name for name in names if name not in before and name not in ("status", "folder")]
    return [*before, "status", *after, "folder"]


def write_csv(sweep: Path) -> None:
    """Writes sweep.csv whole or not at all."""
    table = rows(sweep)
    if not table:
        return
    part = sweep / f".sweep-{os.getpid()}.csv"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(table), restval="")
        writer.writeheader()
        writer.writerows(table)
    os.replace(part, sweep / "sweep.csv")
