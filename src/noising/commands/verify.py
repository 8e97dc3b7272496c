"""`verify`: the identities of the theory on a config, with oracles in the place of the network."""

from pathlib import Path

from omegaconf import DictConfig
from rich.text import Text

from noising.commands.tables import print_table, relative
from noising.config.theory import build_recipe, build_sampler
from noising.errors import UsageError
from noising.plots.theory import recipe_curves
from noising.runs.folder import Run
from noising.runs.rows import write_csv
from noising.verification.identity import Identity
from noising.verification.report import identities

RESOLUTION, LEVELS = 32, 256  # size and grey levels of the images that the identities are for: no data set is read


class VerificationError(UsageError):
    """Identities that do not hold; the message names them."""

    exit_code = 1


def verify(cfg: DictConfig, run_dir: Path) -> None:
    """Print the identities, leave them and the plots in run_dir; raise VerificationError if one fails."""
    recipe = build_recipe(cfg, RESOLUTION, LEVELS)
    sampler = build_sampler(cfg, cfg.timesteps, recipe.schedule)
    rows = list(identities(recipe, sampler, cfg.timesteps))
    columns = (*Identity._fields, "holds")
    write_csv(run_dir / "identities.csv", columns, ([*row, row.holds] for row in rows))
    recipe_curves(run_dir / "verification.png", recipe, cfg.timesteps)
    print_table("identities", ("part", "identity", *columns[2:]), map(_cells, rows), words=(0, 1, 5), min_width=130)
    failed = [f"{row.part}: {row.name}" for row in rows if not row.holds]
    held = f"{len(rows) - len(failed)} of {len(rows)} identities hold"
    print(f"{held}; identities.csv and verification.png are in {relative(run_dir)}")
    Run(run_dir).finish("failed" if failed else "finished", {})  # for the table of a sweep
    if failed:
        raise VerificationError(f"not satisfied: {'; '.join(failed)}")


def _cells(row: Identity) -> list[str | Text]:
    numbers = (f"{row.expected:.7g}", f"{row.measured:.7g}", f"{row.tolerance:.1g}")
    return [row.part, row.name, *numbers, "yes" if row.holds else Text("NO", style="bold red")]
