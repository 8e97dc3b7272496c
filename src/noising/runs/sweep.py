"""The table of a sweep: sweep.csv, one row a job."""

from contextlib import suppress
from pathlib import Path

from noising.config.secrets import masked
from noising.config.words import unquoted
from noising.runs.declarations import Declaration, from_summary
from noising.runs.folder import Run
from noising.runs.resume import read_overrides
from noising.runs.rows import Row, write_csv


def rows(sweep: Path) -> list[Row]:
    """One row a job, by number: its overrides, its status, the numbers of its summary.json, why it failed, its folder.

    A job without a summary.json has the status "failed": it ended before its run began.
    """
    table = []
    for job in sorted((path.parent.parent for path in sweep.glob("*/.hydra/overrides.yaml")), key=_number):
        row: Row = {}
        for override in read_overrides(job / ".hydra" / "overrides.yaml") or []:
            key, _, value = override.partition("=")
            if key != "resume":
                row[key.lstrip("+")] = masked(unquoted(value), key)
        try:
            summary = Run(job).summary
        except ValueError:  # damaged
            summary = {}
        row["status"] = summary.get("status", "failed")
        row |= {key: value for key, value in summary.items() if type(value) in (int, float) and key not in row}
        if row["status"] == "failed" and "error" in summary:
            row["error"] = summary["error"]
        row["folder"] = job.name
        table.append(row)
    return table


def declarations(sweep: Path) -> dict[str, Declaration]:
    """The declarations of all jobs' numbers."""
    found: dict[str, Declaration] = {}
    for job in sweep.glob("*/summary.json"):
        with suppress(ValueError):  # damaged
            found |= from_summary(Run(job.parent).summary)
    return found


def _number(job: Path) -> tuple[int, str]:
    number = job.name.partition("_")[0]
    return (int(number) if number.isdigit() else 0, job.name)


def columns(table: list[Row]) -> list[str]:
    """The keys of all rows: overrides, status, numbers, folder, each kind in order of first appearance."""
    before = dict.fromkeys(name for row in table for name in list(row)[: list(row).index("status")])
    after = dict.fromkeys(name for row in table for name in row if name not in (*before, "status", "folder"))
    return [*before, "status", *after, "folder"]


def write_sweep(sweep: Path) -> None:
    """Write sweep.csv, if there is a job to write of."""
    if table := rows(sweep):
        names = columns(table)
        write_csv(sweep / "sweep.csv", names, ([row.get(name, "") for name in names] for row in table))
