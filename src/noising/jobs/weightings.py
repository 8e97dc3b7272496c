"""`weightings`: what a loss weighs, as w(λ): every weighting in the user's config, and the experiments as they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig

from noising.configuration import UsageError
from noising.diffusion.loss_weights import loss_weights
from noising.recipe import Recipe, build_recipe, require_compatible

__all__ = ["weightings"]

RESOLUTION, LEVELS = 32, 256
"""Of the images that are weighed: no data set is read."""
SHOWN = (-12.0, 12.0)
"""λ on the axis: beyond, an image of 8 bits is clean, or hidden."""


def weightings(cfg: DictConfig, run_dir: Path) -> None:
    """Draw weightings.png in run_dir."""
    require_compatible(cfg)
    own = HydraConfig.get().overrides.task
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for choice in _choices("weighting"):
        try:
            _draw(left, _recipe([*own, f"weighting={choice}"]), choice)
        except (UsageError, ValueError, TypeError, RuntimeError) as error:  # of the user's, perhaps not done yet
            print(f"weighting={choice} is left out: {error}")
    _draw_density(left, build_recipe(cfg, RESOLUTION, LEVELS))
    left.set_title("every weighting in this config: its schedule, parameterization, times and objective", fontsize=10)
    drawn: list[str] = []
    for experiment in _choices("experiment"):
        recipe = _recipe([f"experiment={experiment}"])
        if (known := repr(_theory(recipe))) not in drawn:
            drawn.append(known)
            _draw(right, recipe, experiment)
    right.set_title("the experiments, each with its own parts", fontsize=10)
    for axes in (left, right):
        axes.set(xlabel="λ = log α²/σ²  [nats]", yscale="log", xlim=SHOWN, ylim=(1e-3, 1e3))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    left.set_ylabel("w(λ), weight on ‖ε − ε̂‖² times p(λ), relative to λ = 0")
    path = run_dir / "weightings.png"
    figure.savefig(path, dpi=120)
    print(f"w(λ) of every weighting and experiment in {os.path.relpath(path)}")


def _choices(group: str) -> list[str]:
    """What the config folders hold, the user's own included."""
    return GlobalHydra.instance().config_loader().get_group_options(group)


def _recipe(overrides: list[str]) -> Recipe:
    return build_recipe(compose("weightings", overrides), RESOLUTION, LEVELS)


def _theory(recipe: Recipe) -> tuple[object, ...]:
    """What w(λ) depends on, to tell experiments that differ elsewhere only."""
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    parts = (recipe.schedule, recipe.parameterization, recipe.times, recipe.objective)
    return tuple(curve.tolist() for curve in loss_weights(*parts, t))


def _curves(recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """λ rising, w(λ) and p(λ)."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    parts = (recipe.schedule, recipe.parameterization, recipe.times, recipe.objective)
    log_snr, density, weight = (curve.cpu().numpy()[::-1] for curve in loss_weights(*parts, t))
    return log_snr, weight, density


def _draw(axes: Axes, recipe: Recipe, label: str) -> None:
    log_snr, weight, _ = _curves(recipe)
    axes.plot(log_snr, weight / np.interp(0, log_snr, weight), label=label, linewidth=1.5)


def _draw_density(axes: Axes, recipe: Recipe) -> None:
    log_snr, _, density = _curves(recipe)
    axes.plot(log_snr, density / np.interp(0, log_snr, density), "k--", linewidth=1, label="p(λ) alone")
