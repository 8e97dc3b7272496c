"""From a config to the theory: the recipe and the sampler, without data, network or Trainer."""

import logging
from typing import Any, TypeVar

from omegaconf import DictConfig

from noising.config.instantiate import locate, make, make_function, parameters, tried
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.noise_labels import NoiseLabel
from noising.diffusion.objectives import Objective
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.recipe import Recipe, conflicts
from noising.diffusion.samplers import Sampler
from noising.diffusion.schedules import Schedule
from noising.diffusion.times import TimeSampler
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import ReverseVariance
from noising.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")


def build_recipe(config: DictConfig, resolution: int, levels: int) -> Recipe:
    """The recipe of a config, for images of that resolution and number of grey levels.

    Raises ConfigError, with the way out, if its parts cannot work together.
    """

    def part(group: str, kind: type[T], **facts: Any) -> T:
        return make(config[group], group, kind, timesteps=config.timesteps, **facts)

    _require_comparing(config.objective)
    decoder = part("decoder", Decoder, levels=levels)
    weighting = make_function(config.weighting, "weighting", timesteps=config.timesteps)
    recipe = Recipe(
        part("schedule", Schedule, resolution=resolution),
        part("parameterization", Parameterization),
        part("noise_label", NoiseLabel),
        part("variance", ReverseVariance),
        part("times", TimeSampler),
        part("objective", Objective, weighting=weighting, decoder=decoder),
        decoder,
    )
    for conflict in conflicts(recipe):
        raise ConfigError(conflict)
    return recipe


def _require_comparing(node: DictConfig) -> None:
    """Raise ConfigError if an objective is to compare what it has no choice of."""
    target = locate(node.get("_target_"), "objective")
    if node.get("compared") is not None and "compared" not in parameters(target):
        raise ConfigError(
            f"objective.compared: the loss of {getattr(target, '__name__', target)} is the same whatever is compared; "
            "use objective=regression, weighted_bound or hybrid, or leave it out"
        )


LATE_ENOUGH = 0.85
"""The least first time of a sampler that is used in the field: `leading` of ten steps begins at 0.9."""


def build_sampler(config: DictConfig, timesteps: int, schedule: Schedule | None = None) -> Sampler:
    """The sampler, with the grid it steps on.

    timesteps: T of the chain that was trained; schedule: the one that the steps are tried on before any work.
    """
    grid = make_function(config.grid, "grid", timesteps=timesteps)
    sampler = make(config.sampler, "sampler", Sampler, grid=grid)
    if schedule is not None:
        chain = tried("grid", Chain, sampler.chain, schedule)
        begins = float(chain.steps.later.t[-1])
        if begins < LATE_ENOUGH:
            log.warning("sampling begins at t = %.3g, but x_T is drawn for t = 1: use a grid that begins at 1", begins)
    return sampler
