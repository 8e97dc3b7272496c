"""`weightings`: what a loss weighs, as w(λ): every weighting in the user's config, and the experiments as they are."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig

from noising.config.theory import build_recipe
from noising.diffusion.recipe import Recipe
from noising.diffusion.weightings import loss_weights
from noising.errors import UsageError
from noising.plots.theory import SHOWN, draw_density, draw_weight

__all__ = ["weightings"]


RESOLUTION, LEVELS = 32, 256
"""Of the images that are weighed: no data set is read."""


def weightings(cfg: DictConfig, run_dir: Path) -> None:
    """Draw weightings.png in run_dir."""
    recipe = build_recipe(cfg, RESOLUTION, LEVELS)
    own = HydraConfig.get().overrides.task
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for choice in _choices("weighting"):
        try:
            draw_weight(left, _recipe([*own, f"weighting={choice}"]), choice)
        except (UsageError, ValueError, TypeError, RuntimeError) as error:  # of the user's, perhaps not done yet
            print(f"weighting={choice} is left out: {error}")
    draw_density(left, recipe)
    left.set_title("every weighting in this config: its schedule, parameterization, times and objective", fontsize=10)
    drawn: list[str] = []
    for experiment in _choices("experiment"):
        recipe = _recipe([f"experiment={experiment}"])
        if (known := repr(_theory(recipe))) not in drawn:
            drawn.append(known)
            draw_weight(right, recipe, experiment)
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
