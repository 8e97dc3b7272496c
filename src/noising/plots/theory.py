"""Pictures of a recipe: its schedule, what its loss weighs, its bound step by step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from noising.diffusion.loss_weights import LossWeights, loss_weights, nine_comparisons
from noising.diffusion.recipe import Recipe
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import Optimal
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian
from noising.plots.grids import save_figure
from noising.verification.gaussian_data import STD, expected_bound


def loss_curves(recipe: Recipe, points: int = 4000) -> LossWeights:
    """w and p of a recipe's loss at times spread evenly over (0, 1)."""
    return loss_weights(recipe.schedule, recipe.parameterization, recipe.times, recipe.objective, _times(points))


def _times(points: int) -> Tensor:
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points


@torch.no_grad()
def recipe_curves(path: Path, recipe: Recipe, timesteps: int) -> None:
    """Plot λ(t), α and σ, w(λ) and p(λ), and the bound of Gaussian data by step."""
    t = _times(2000)
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

    curves = loss_curves(recipe, len(t))
    for values, style, label in ((curves.weight, "-", "w(λ)"), (curves.density, "--", "p(λ)")):
        weights.plot(curves.log_snr.cpu(), (values / values.max()).cpu(), style, label=f"{label} / maximum")
    name = f"{type(recipe.objective).__name__} at {type(recipe.times).__name__} times"
    weights.set(xlabel="λ  [nats]", ylabel="weight on ‖ε − ε̂‖², density", title=name)
    weights.legend()

    oracle = gaussian(STD)
    best = Optimal(error=oracle.error)
    own = recipe.variance if recipe.variance.outputs == 1 and not recipe.variance.fitted else best
    positive = False
    for variance, style in ((own, "-"), (best, "--")):
        denoiser = oracle_denoiser(oracle, recipe.schedule, recipe.parameterization, variance)
        steps = expected_bound(denoiser, Chain.uniform(recipe.schedule, timesteps)).steps
        positive |= bool((steps > 0).any())
        bound.plot(torch.arange(2, timesteps + 1), steps, style, label=type(variance).__name__)
    bound.set(xscale="log", yscale="log" if positive else "linear")  # a faulty schedule has a picture too
    bound.set(xlabel="step t (t = 1: least noise)", ylabel="$L_t$  [bits/dim per step]")
    bound.set_title(f"bound of N(0, {STD}²), optimal denoiser")
    bound.legend()
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    save_figure(figure, path, dpi=120)


def weighting_curves(
    path: Path,
    own: Mapping[str, LossWeights],
    recipe: LossWeights,
    experiments: Mapping[str, LossWeights],
    schedule: Schedule,
) -> None:
    """Plot w(λ) p(λ) of every weighting in one config, beside p(λ) of that config, and of every experiment.

    Beside them stand the nine losses of what may be predicted and what may be compared, on the config's schedule.
    """
    figure = Figure(figsize=(19, 5.2), layout="constrained")
    left, right, nine = figure.subplots(1, 3, sharey=True)
    for axes, losses in ((left, own), (right, experiments)):
        for name, curves in losses.items():
            _plot_relative(axes, curves, curves.weight, label=name, linewidth=1.5)
    _plot_relative(left, recipe, recipe.density, color="k", linestyle="--", label="p(λ) alone", linewidth=1)
    left.set_title("every weighting in this config: its schedule, parameterization, times and objective", fontsize=10)
    right.set_title("the experiments, each with its own parts", fontsize=10)
    _plot_nine(nine, schedule)
    for axes in (left, right, nine):  # beyond these λ an image of 8 bits is clean, or hidden
        axes.set(xlabel="λ = log α²/σ²  [nats]", yscale="log", xlim=(-12.0, 12.0), ylim=(1e-3, 1e3))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    left.set_ylabel("w(λ): weight on ‖ε − ε̂‖² times p(λ), relative to λ = 0")
    save_figure(figure, path, dpi=120)


def _plot_nine(axes: Axes, schedule: Schedule) -> None:
    """Plot the weight of what is predicted for each of the nine, by colour, where each is compared, by line."""
    level = schedule(_times(4000))
    colours, lines = {"x": "C0", "ε": "C1", "v": "C2"}, {"x": "-", "ε": "--", "v": ":"}
    for predicted, compared, weight in nine_comparisons(schedule, level):
        (line,) = axes.plot(level.log_snr.flatten().cpu(), weight.cpu(), lines[compared], color=colours[predicted])
        line.set_label(f"{predicted}, compared as {compared}")
    axes.set_title("what the network predicts and what is compared: w of its own error", fontsize=10)
    axes.set_ylabel("w: weight on ‖target − output‖², with weighting=uniform")


def _plot_relative(axes: Axes, curves: LossWeights, values: Tensor, **style: Any) -> None:
    """Plot values over λ, relative to that at λ = 0."""
    log_snr, ordinate = (curve.cpu().numpy()[::-1] for curve in (curves.log_snr, values))  # λ rising
    axes.plot(log_snr, ordinate / np.interp(0, log_snr, ordinate), **style)
