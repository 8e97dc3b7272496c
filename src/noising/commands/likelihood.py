"""`likelihood`: -log p of the test images under a trained model's probability flow, with standard errors."""

import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from noising.commands.devices import find_device
from noising.commands.loggers import open_results
from noising.commands.tables import number, print_files, print_table, relative
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.diffusion.drawing import in_evaluation
from noising.diffusion.likelihood.dequantization import FlowBits, FlowLikelihood, offset_bits
from noising.diffusion.likelihood.divergences import Divergence
from noising.diffusion.likelihood.flow import replicated_mean
from noising.errors import ConfigError, config_errors
from noising.randomness import Streams
from noising.runs.declarations import Declaration
from noising.runs.folder import Run
from noising.runs.status import run_status
from noising.trained import load

_NLL = Declaration("flow's -log p(x)", "bits/dim", "lower")
_SEED = 0
"""Seed of all draws, which are keyed by the image's index: two models meet the same noise."""


def likelihood(cfg: DictConfig, run_dir: Path) -> None:
    """Leave test/flow_nll with its errors and card in summary.json, the same for any batch size."""
    trained = load(cfg.checkpoint)
    flow = _flow(cfg, int(trained.config.timesteps))
    data, run = trained.data, Run(run_dir)
    available = len(data.test.pixels)
    count = cfg.images or available
    if count > available:
        raise ConfigError(f"images={count} is more than the {available} test images of {data.name}: lower it, or null")
    indices = torch.arange(count) * available // count  # evenly spread over the set
    device = find_device(cfg.device)
    denoiser = trained.denoiser.to(device).requires_grad_(False)
    images = trained.image_set("test", device)
    results = open_results(run, cfg, "likelihood")
    cost = flow.divergence.backward_passes(data.test.pixels[0].numel())
    print(
        f"{relative(run.path)}: {count} test images of {data.name}, {flow.replicates} replicates, "
        f"{type(flow.solver).__name__}, {type(flow.divergence).__name__} divergence of "
        f"{cost} backward pass{'es' if cost > 1 else ''} per evaluation"
    )

    def flow_bits(batch: torch.Tensor) -> FlowBits:
        x, label = images.fetch(batch)
        # two keys, so that u is the same whatever the probe
        keys = (f"likelihood/{use}" for use in ("dequantization", "probe"))
        places, probes = (Streams(_SEED, key, batch.tolist(), device) for key in keys)
        return flow(denoiser, x, data.levels, places, probes, label if trained.classes else None)

    with run_status(results, without_secrets(cfg)):
        results.declare({"flow_nll": _NLL})
        with in_evaluation(denoiser), config_errors("solver"):
            measured = [
                flow_bits(batch)
                for batch in track(torch.split(indices, cfg.batch_size), "likelihood", console=Console(stderr=True))
            ]
        result = replicated_mean(torch.cat([batch.bits for batch in measured]))
        spent = sum(len(batch.bits) * batch.evaluations for batch in measured) / count
        card = {
            "unit": "bits/dim",
            "model": "the probability flow stopped at start_time: an upper bound of its -log2 P by dequantization",
            "interval_95": result.interval,
            **trained.source,
            **data.identity,
            "split": "test",
            "grey_levels": data.levels,
            "classes": trained.classes,
            "replicates": flow.replicates,
            "solver": OmegaConf.to_container(cfg.solver),
            "divergence": OmegaConf.to_container(cfg.divergence),
            "dequantization": "uniform",
            "offset": offset_bits(data.levels),
            "start_time": flow.start_time,
            "timesteps": trained.config.timesteps,
            "clip": flow.clip,
            "precision": "float32, log-volume in float64",
            "noise_seed": _SEED,
            "images": count,
            "evaluations_per_image": spent,
            "backward_passes_per_evaluation": cost,
        }
        numbers = {"": result.mean, "_mc_se": result.mc_se, "_image_se": result.image_se}
        named = {f"test/flow_nll{suffix}": value for suffix, value in numbers.items()}
        results.write_all(named, trained.step, {"test/flow_nll": card})
    low, high = map(number, result.interval)
    over_images = "not resolved" if math.isnan(result.image_se) else number(result.image_se)
    values = [number(result.mean), number(result.mc_se), over_images, f"{low} to {high}"]
    columns = (_NLL.unit, "value", "± Monte Carlo", "± images", "95% interval")
    print_table(f"{data.name} test set, {count} images", columns, [[_NLL.title, *values]])
    print(
        f"{spent:.0f} network evaluations per image, uniform dequantization (offset {card['offset']:.4f}), "
        f"flow stopped at t = {flow.start_time:g}, T = {card['timesteps']}, clip {flow.clip}, "
        f"EMA weights of step {trained.step}; ± is one standard error\n"
    )
    print_files(run.summary_file)


def _flow(cfg: DictConfig, timesteps: int) -> FlowLikelihood:
    start_time = 1 / timesteps if cfg.start_time is None else cfg.start_time
    if not 0 < start_time < 1:
        raise ConfigError(f"start_time must be between 0 and 1, got {start_time:g}: null is 1/timesteps")
    if cfg.clip is not None and cfg.clip <= 0:
        raise ConfigError(f"clip must be positive or null, got {cfg.clip}")
    solver: Any = make(cfg.solver, "solver", object)
    divergence = make(cfg.divergence, "divergence", Divergence)
    return FlowLikelihood(solver, divergence, start_time, cfg.replicates, cfg.clip)
