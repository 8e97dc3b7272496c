"""All identities of a recipe, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from noising.diffusion.loss_weights import loss_weights
from noising.diffusion.optimal_variance import Optimal
from noising.diffusion.samplers import Sampler
from noising.diffusion.transition import Chain
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian
from noising.recipe import Recipe
from noising.verification.chain import chain_identities, variance_identities
from noising.verification.gaussian_data import STD, bound_identities, expected_bound
from noising.verification.identity import Identity
from noising.verification.learning import learning_identities
from noising.verification.sampling import decoder_identities, sampler_identities
from noising.verification.schedule import schedule_identities

__all__ = ["draw", "identities", "table"]


def identities(recipe: Recipe, sampler: Sampler, timesteps: int) -> Iterator[Identity]:
    """What must hold of a recipe on a chain of T steps, and of a sampler with it."""
    chain = Chain.uniform(recipe.schedule, timesteps)
    yield from schedule_identities(recipe.schedule)
    yield from chain_identities(chain)
    yield from variance_identities(recipe.variance, chain)
    yield from learning_identities(recipe, timesteps)
    yield from bound_identities(recipe, chain)
    yield from decoder_identities(recipe.decoder, chain)
    yield from sampler_identities(sampler, recipe)


def table(rows: Sequence[Identity]) -> Table:
    """Identity, expected, measured, tolerance, holds or not."""
    shown = Table(title="identities", title_justify="left")
    for column, justify in (("part", "left"), ("identity", "left"), ("expected", "right"), ("measured", "right")):
        shown.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    shown.add_column("tolerance", justify="right")
    shown.add_column("holds")
    for row in rows:
        numbers = (f"{row.expected:.7g}", f"{row.measured:.7g}", f"{row.tolerance:.1g}")
        shown.add_row(row.part, escape(row.name), *numbers, "yes" if row.holds else "[bold red]NO[/]")
    return shown


@torch.no_grad()
def draw(path: Path, recipe: Recipe, timesteps: int) -> None:
    """λ(t), α and σ, w(λ) and p(λ), and the bound of Gaussian data by step."""
    t = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    level = recipe.schedule(t)
    log_snr, alpha, sigma = (field.flatten().cpu() for field in (level.log_snr, level.alpha, level.sigma))
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    curve, scales, weights, bound = figure.subplots(2, 2).flat
    curve.plot(t, log_snr)
    curve.set(xlabel="time t", ylabel="λ = log α²/σ²  [nats]", title=f"{type(recipe.schedule).__name__}")
    scales.plot(t, alpha, label="α")
    scales.plot(t, sigma, label="σ")
    scales.set(xlabel="time t", ylabel="amplitude", title=f"{type(recipe.schedule.geometry).__name__}")
    if float(sigma.max()) > 5:
        scales.set_yscale("log")
    scales.legend()

    curves = loss_weights(recipe.schedule, recipe.parameterization, recipe.times, recipe.objective, t)
    for values, style, label in ((curves.weight, "-", "w(λ)"), (curves.density, "--", "p(λ)")):
        weights.plot(curves.log_snr.cpu(), (values / values.max()).cpu(), style, label=f"{label}, of its largest")
    name = f"{type(recipe.objective).__name__} at {type(recipe.times).__name__} times"
    weights.set(xlabel="λ  [nats]", ylabel="weight on ‖ε − ε̂‖², density", title=name)
    weights.legend()

    oracle = gaussian(STD)
    chain = Chain.uniform(recipe.schedule, timesteps)
    best = Optimal(error=oracle.error)
    own = recipe.variance if recipe.variance.outputs == 1 and not recipe.variance.fitted else best
    positive = False
    for variance, style in ((own, "-"), (best, "--")):
        denoiser = oracle_denoiser(oracle, recipe.schedule, recipe.parameterization, variance)
        steps = expected_bound(denoiser, chain).steps
        positive |= bool((steps > 0).any())
        bound.plot(torch.arange(2, timesteps + 1), steps, style, label=type(variance).__name__)
    bound.set(xscale="log", yscale="log" if positive else "linear")  # a faulty schedule has a picture too
    bound.set(xlabel="step t (1 is next to clean)", ylabel="$L_t$  [bits/dim per step]")
    bound.set_title(f"bound of N(0, {STD}²), optimal denoiser")
    bound.legend()
    for axes in (curve, scales, weights, bound):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
