"""All identities of a recipe, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from noising.diffusion.recipe import Recipe
from noising.diffusion.samplers import Sampler
from noising.diffusion.transitions import Chain
from noising.verification.chain import chain_identities, variance_identities
from noising.verification.gaussian_data import bound_identities
from noising.verification.identity import Identity
from noising.verification.learning import learning_identities
from noising.verification.sampling import decoder_identities, sampler_identities
from noising.verification.schedule import schedule_identities

__all__ = ["identities", "table"]


def identities(recipe: Recipe, sampler: Sampler, timesteps: int) -> Iterator[Identity]:
    """Check all identities of a recipe on a chain of T steps, and of a sampler with it."""
    chain = Chain.uniform(recipe.schedule, timesteps)
    yield from schedule_identities(recipe.schedule)
    yield from chain_identities(chain)
    yield from variance_identities(recipe.variance, chain)
    yield from learning_identities(recipe, timesteps)
    yield from bound_identities(recipe, chain)
    yield from decoder_identities(recipe.decoder, chain)
    yield from sampler_identities(sampler, recipe)


def table(rows: Sequence[Identity]) -> Table:
    """The table of identities: part, name, expected, measured, tolerance, whether it holds."""
    shown = Table(title="identities", title_justify="left")
    for column, justify in (("part", "left"), ("identity", "left"), ("expected", "right"), ("measured", "right")):
        shown.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    shown.add_column("tolerance", justify="right")
    shown.add_column("holds")
    for row in rows:
        numbers = (f"{row.expected:.7g}", f"{row.measured:.7g}", f"{row.tolerance:.1g}")
        shown.add_row(row.part, escape(row.name), *numbers, "yes" if row.holds else "[bold red]NO[/]")
    return shown
