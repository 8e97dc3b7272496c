"""`weightings`: the weight w(λ) of every weighting in a config, of the experiments on its data, of the nine losses."""

from pathlib import Path

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from noising.commands.tables import relative
from noising.config.theory import build_recipe
from noising.diffusion.loss_weights import LossWeights
from noising.errors import UsageError
from noising.plots.theory import loss_curves, weighting_curves
from noising.runs.folder import Run

RESOLUTION, LEVELS = 32, 256  # size and grey levels of the images that the losses are for: no data set is read


def weightings(cfg: DictConfig, run_dir: Path) -> None:
    """Draw weightings.png in run_dir."""
    recipe = build_recipe(cfg, RESOLUTION, LEVELS)
    choices = GlobalHydra.instance().config_loader().get_group_options  # those in the user's own folder included
    overrides = HydraConfig.get().overrides.task
    own: dict[str, LossWeights] = {}
    for choice in choices("weighting"):
        try:
            own[choice] = _curves(compose("weightings", [*overrides, f"weighting={choice}"]))
        except (UsageError, ValueError, TypeError, RuntimeError) as error:  # of the user's, perhaps not done yet
            print(f"weighting={choice} is left out: {error}")
    experiments: dict[str, LossWeights] = {}
    for experiment in choices("experiment"):
        composed = compose("weightings", [f"experiment={experiment}"])
        if composed.data != cfg.data:  # a recipe at published size, whose curve is that of a small one
            continue
        curves = _curves(composed)
        if not any(all(map(torch.equal, curves, others)) for others in experiments.values()):
            experiments[experiment] = curves
    path = run_dir / "weightings.png"
    weighting_curves(path, own, loss_curves(recipe), experiments, recipe.schedule)
    Run(run_dir).finish("finished", {})  # for the table of a sweep
    print(f"w(λ) of every weighting and experiment is plotted in {relative(path)}")


def _curves(cfg: DictConfig) -> LossWeights:
    return loss_curves(build_recipe(cfg, RESOLUTION, LEVELS))
