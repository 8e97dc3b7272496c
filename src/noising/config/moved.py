"""Names that earlier versions wrote into checkpoints and run folders, and what they are called today."""

from collections.abc import Mapping
from typing import Any

MODULES = {
    "noising.diffusion.adaptive_bound": "noising.diffusion.likelihood.adaptive",
    "noising.diffusion.bound_estimators": "noising.diffusion.likelihood.estimators",
    "noising.diffusion.bound_objectives": "noising.diffusion.objectives",
    "noising.diffusion.decoders": "noising.diffusion.likelihood.decoders",
    "noising.diffusion.divergences": "noising.diffusion.likelihood.divergences",
    "noising.diffusion.heun": "noising.diffusion.samplers",
    "noising.diffusion.higher_order_samplers": "noising.diffusion.samplers",
    "noising.diffusion.learned_schedules": "noising.diffusion.schedules",
    "noising.diffusion.loss_aware": "noising.diffusion.times",
    "noising.diffusion.ode_solvers": "noising.diffusion.likelihood.solvers",
    "noising.diffusion.optimal_variance": "noising.diffusion.variances",
    "noising.diffusion.schedule_wrappers": "noising.diffusion.schedules",
    "noising.diffusion.tabulated_schedules": "noising.diffusion.schedules",
    "noising.jobs.bound_benchmark": "noising.commands.bound_benchmark",
    "noising.jobs.sampler_benchmark": "noising.commands.sampler_benchmark",
    "noising.sweep": "noising.cli.sweeps",
    "noising.sweep_figure": "noising.cli.sweeps",
    "noising.training.protocols": "noising.metrics.quality",
    "noising.training.quality_check": "noising.training.callbacks.quality",
    "noising.training.samples": "noising.training.callbacks.samples",
}
"""Modules of conf/'s classes and functions, by their earlier names."""
TARGETS = {"noising.training.record.Record": "noising.training.callbacks.results.ResultsCallback"}
"""Targets whose last name changed as well."""
RENAMED = {"callbacks.record": "results"}
"""Options with another name today, by their earlier path."""


def with_current_names(config: Any, path: str = "") -> Any:
    """A config, or its node at `path`, with today's `_target_`s and options in place of earlier ones."""
    if isinstance(config, list):
        return [with_current_names(value, path) for value in config]
    if not isinstance(config, Mapping):
        return config
    renamed = {}
    for name, value in config.items():
        if name == "_target_" and isinstance(value, str):
            module, _, last = value.rpartition(".")
            moved = f"{MODULES[module]}.{last}" if module in MODULES else value
            renamed[name] = TARGETS.get(value, moved)
            continue
        option = f"{path}.{name}" if path else str(name)
        renamed[RENAMED.get(option, name)] = with_current_names(value, option)
    return renamed
