"""Pictures of a recipe: its schedule, what its loss weighs, its bound step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noising.diffusion.recipe import Recipe
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import Optimal
from noising.diffusion.weightings import loss_weights
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian
from noising.verification.gaussian_data import STD, expected_bound

__all__ = ["draw"]


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


SHOWN = (-12.0, 12.0)
"""λ on the axis: beyond, an image of 8 bits is clean, or hidden."""


def _curves(recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """λ rising, w(λ) and p(λ)."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    parts = (recipe.schedule, recipe.parameterization, recipe.times, recipe.objective)
    log_snr, density, weight = (curve.cpu().numpy()[::-1] for curve in loss_weights(*parts, t))
    return log_snr, weight, density


def draw_weight(axes: Axes, recipe: Recipe, label: str) -> None:
    log_snr, weight, _ = _curves(recipe)
    axes.plot(log_snr, weight / np.interp(0, log_snr, weight), label=label, linewidth=1.5)


def draw_density(axes: Axes, recipe: Recipe) -> None:
    log_snr, _, density = _curves(recipe)
    axes.plot(log_snr, density / np.interp(0, log_snr, density), "k--", linewidth=1, label="p(λ) alone")
