"""`verify`: the identities of the theory on the user's own config, with oracles where the network would be."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from noising.config.theory import build_recipe, build_sampler
from noising.errors import UsageError
from noising.plots.theory import draw
from noising.runs.folder import replacing
from noising.verification.identity import Identity
from noising.verification.report import identities, table

__all__ = ["VerificationError", "verify"]


RESOLUTION, LEVELS = 32, 256
"""Of the images that the identities are for: no data set is read."""


class VerificationError(UsageError):
    """Some identity does not hold; the message names them."""

    exit_code = 1


def verify(cfg: DictConfig, run_dir: Path) -> None:
    """Print the table, leave it and the plots in run_dir; raise VerificationError if an identity fails."""
    recipe = build_recipe(cfg, RESOLUTION, LEVELS)
    sampler = build_sampler(cfg, cfg.timesteps, recipe.schedule)
    rows = list(identities(recipe, sampler, cfg.timesteps))
    _write(run_dir / "identities.csv", rows)
    draw(run_dir / "verification.png", recipe, cfg.timesteps)
    Console(width=max(Console().width, 130)).print(table(rows))
    failed = [row for row in rows if not row.holds]
    where = os.path.relpath(run_dir)
    print(f"{len(rows) - len(failed)} of {len(rows)} hold; in {where}: identities.csv, verification.png")
    if failed:
        raise VerificationError("does not hold: " + "; ".join(f"{row.part}: {row.name}" for row in failed))


def _write(path: Path, rows: list[Identity]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*Identity._fields, "holds"])
    writer.writerows([*row, row.holds] for row in rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())
