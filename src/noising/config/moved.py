"""Names that earlier versions wrote into checkpoints and run folders, and what they are called today."""

from collections.abc import Mapping
from typing import Any

TARGETS = {
    "noising.diffusion.adaptive_bound.Adaptive": "noising.diffusion.likelihood.adaptive.Adaptive",
    "noising.diffusion.bound_estimators.Exact": "noising.diffusion.likelihood.estimators.Exact",
    "noising.diffusion.bound_estimators.Stratified": "noising.diffusion.likelihood.estimators.Stratified",
    "noising.diffusion.bound_objectives.Hybrid": "noising.diffusion.objectives.Hybrid",
    "noising.diffusion.bound_objectives.VariationalBound": "noising.diffusion.objectives.VariationalBound",
    "noising.diffusion.decoders.DiscretizedGaussian": "noising.diffusion.likelihood.decoders.DiscretizedGaussian",
    "noising.diffusion.decoders.PlainGaussian": "noising.diffusion.likelihood.decoders.PlainGaussian",
    "noising.diffusion.decoders.SoftmaxGaussian": "noising.diffusion.likelihood.decoders.SoftmaxGaussian",
    "noising.diffusion.decoders.TanhDiscretizedGaussian": (
        "noising.diffusion.likelihood.decoders.TanhDiscretizedGaussian"
    ),
    "noising.diffusion.divergences.Exact": "noising.diffusion.likelihood.divergences.Exact",
    "noising.diffusion.divergences.Gaussian": "noising.diffusion.likelihood.divergences.Gaussian",
    "noising.diffusion.divergences.Rademacher": "noising.diffusion.likelihood.divergences.Rademacher",
    "noising.diffusion.heun.Heun": "noising.diffusion.samplers.Heun",
    "noising.diffusion.higher_order_samplers.DPMPP2M": "noising.diffusion.samplers.DPMPP2M",
    "noising.diffusion.higher_order_samplers.Heun": "noising.diffusion.samplers.Heun",
    "noising.diffusion.learned_schedules.LearnedLogSNR": "noising.diffusion.schedules.LearnedLogSNR",
    "noising.diffusion.loss_aware.LossAware": "noising.diffusion.times.LossAware",
    "noising.diffusion.ode_solvers.DormandPrince": "noising.diffusion.likelihood.solvers.DormandPrince",
    "noising.diffusion.ode_solvers.RungeKutta4": "noising.diffusion.likelihood.solvers.RungeKutta4",
    "noising.diffusion.ode_solvers.even_in_log_snr": "noising.diffusion.likelihood.solvers.even_in_log_snr",
    "noising.diffusion.optimal_variance.Optimal": "noising.diffusion.variances.Optimal",
    "noising.diffusion.schedule_wrappers.ResolutionShift": "noising.diffusion.schedules.ResolutionShift",
    "noising.diffusion.schedule_wrappers.ZeroTerminalSNR": "noising.diffusion.schedules.ZeroTerminalSNR",
    "noising.diffusion.tabulated_schedules.Cosine": "noising.diffusion.schedules.Cosine",
    "noising.diffusion.tabulated_schedules.LinearBeta": "noising.diffusion.schedules.LinearBeta",
    "noising.diffusion.tabulated_schedules.ScaledLinearBeta": "noising.diffusion.schedules.ScaledLinearBeta",
    "noising.diffusion.tabulated_schedules.SigmoidBeta": "noising.diffusion.schedules.SigmoidBeta",
    "noising.jobs.bound_benchmark.BoundBenchmark": "noising.commands.bound_benchmark.BoundBenchmark",
    "noising.jobs.sampler_benchmark.SamplerBenchmark": "noising.commands.sampler_benchmark.SamplerBenchmark",
    "noising.sweep.SweepTable": "noising.cli.sweeps.SweepTable",
    "noising.sweep_figure.SweepFigure": "noising.cli.sweeps.SweepFigure",
    "noising.training.protocols.ClassifierDistance": "noising.metrics.quality.ClassifierDistance",
    "noising.training.protocols.DINOv2Distance": "noising.metrics.quality.DINOv2Distance",
    "noising.training.protocols.InceptionDistance": "noising.metrics.quality.InceptionDistance",
    "noising.training.quality_check.QualityCheck": "noising.training.callbacks.quality.QualityCheck",
    "noising.training.record.Record": "noising.training.callbacks.results.ResultsCallback",
    "noising.training.samples.SampleGrid": "noising.training.callbacks.samples.SampleGrid",
}
"""Every `_target_` that conf/ has ever named by another name than today's."""
RENAMED = {"callbacks.record": "results"}
"""Options that have another name today, by their path."""


def with_current_names(config: Any, path: str = "") -> Any:
    """A config, or its node at `path`, with today's `_target_`s and options in place of earlier ones."""
    if isinstance(config, list):
        return [with_current_names(value, path) for value in config]
    if not isinstance(config, Mapping):
        return config
    renamed = {}
    for name, value in config.items():
        if name == "_target_" and isinstance(value, str):
            renamed[name] = TARGETS.get(value, value)
            continue
        option = f"{path}.{name}" if path else str(name)
        renamed[RENAMED.get(option, name)] = with_current_names(value, option)
    return renamed
