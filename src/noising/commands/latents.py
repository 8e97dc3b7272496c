"""`latents`: images drawn between two noises, and how much of an image comes back from its own noise."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from noising.commands.devices import find_device
from noising.commands.loggers import open_results
from noising.commands.tables import evaluations_bar, number, print_files, print_table
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.drawing import class_labels_for, in_evaluation
from noising.diffusion.inversion import interpolate, invert
from noising.diffusion.samplers import DDIM
from noising.errors import ConfigError, config_errors
from noising.plots.inversion import interpolation_rows, reconstruction_error, reconstruction_rows
from noising.randomness import Streams
from noising.runs.declarations import Declaration
from noising.runs.folder import Run
from noising.runs.status import run_status
from noising.trained import TrainedRun, load

_BATCH = 64
_UNITS = {
    "latents/reconstruction_rmse": {"unit": "8-bit grey levels, of pixels kept in [-1, 1] and not rounded"},
    "latents/inverted_std": {"unit": "standard deviations of p(x_T)"},
}

_DECLARED = {
    "reconstruction_rmse": Declaration("error of images rebuilt from their own noise", "grey levels of 255", "lower"),
    "inverted_std": Declaration("standard deviation of the images' noise"),
}


def latents(cfg: DictConfig, run_dir: Path) -> None:
    """Leave three pictures in run_dir, and the errors of reconstruction with their card in summary.json."""
    steps = sorted(set(cfg.steps))
    trained = load(cfg.checkpoint)
    data, run, device = trained.data, Run(run_dir), find_device(cfg.device)
    available = len(data.test.pixels)
    if cfg.images > available:
        raise ConfigError(f"images must be a whole number from 1 to {available}, got {cfg.images}")
    denoiser = trained.guided(cfg.get("guidance"))
    grid: Any = make(cfg.grid, "grid", object, timesteps=trained.config.timesteps)
    with config_errors("steps"):
        samplers = [DDIM(count, grid, cfg.clip) for count in steps]
    with config_errors("grid"):
        costs = [sampler.evaluations(denoiser) for sampler in samplers]
    denoiser = denoiser.to(device)
    shown = torch.arange(cfg.images) * available // cfg.images  # evenly spread over the set
    results = open_results(run, cfg, "latents")
    with run_status(results, without_secrets(cfg)):
        results.declare(_DECLARED)
        total = cfg.pairs * (cfg.between + 2) * costs[-1] + 2 * cfg.images * sum(costs)
        with evaluations_bar(total) as advance, in_evaluation(denoiser):
            between = _interpolate(cfg, trained, denoiser, samplers[-1], device)
            advance(between.shape[:2].numel() * costs[-1])
            x, label = trained.image_set("test", device).fetch(shown)
            label = label if trained.classes else None
            drawn, stds, rows = [], [], []
            for sampler, cost in zip(samplers, costs, strict=True):
                noise_of = partial(invert, denoiser, sampler.chain(denoiser.schedule))
                noise = _in_batches(noise_of, x, label) / denoiser.schedule.prior_std
                y = _in_batches(partial(_draw, denoiser, sampler), noise, label)
                drawn.append(y.cpu())
                stds.append(float(noise.square().mean().sqrt()))
                rows.append(127.5 * (y - x).square().flatten(1).mean(dim=1).sqrt().cpu())  # [−1, 1] is 255 levels
                advance(2 * len(x) * cost)
        errors = torch.stack(rows)  # (S, B), root mean square over the pixels of each image
        rmse = errors.square().mean(dim=1).sqrt().tolist()
        numbers = {"latents/reconstruction_rmse": rmse[-1], "latents/inverted_std": stds[-1]}
        each = {f"latents/reconstruction_rmse_{count}_steps": value for count, value in zip(steps, rmse, strict=True)}
        cards = {name: _UNITS[name] | _card(cfg, trained, steps[-1]) for name in numbers}
        results.write_all(numbers | each, trained.step, cards)

        pictures = [run.path / f"{name}.png" for name in ("interpolation", "reconstruction", "reconstruction_error")]
        names = [f"pair {i}" + (f", class {i % trained.classes}" if trained.classes else "") for i in range(cfg.pairs)]
        title = f"Images from $x_T$ on the arc between two latents, by {steps[-1]} steps of DDIM"
        interpolation_rows(pictures[0], data.to_8bit(data.unscale(between)), names, title)
        title = f"Test images of {data.name} ({cfg.images}), turned to noise and back by DDIM"
        originals, images = data.to_8bit(data.test.pixels[shown]), [data.to_8bit(data.unscale(y)) for y in drawn]
        reconstruction_rows(pictures[1], originals, images, steps, rmse, title)
        reconstruction_error(pictures[2], steps, errors, 255 / (data.levels - 1), title)
        for picture in pictures:
            results.write_image(picture.stem, picture, trained.step, title)
    measured = zip(steps, rmse, errors.amax(dim=1).tolist(), stds, strict=True)
    columns = ("steps in each direction", "RMSE, of 255", "worst image", "std of the noise")
    lines = [[str(count), *map(number, values)] for count, *values in measured]
    print_table(f"{cfg.images} test images of {data.name}, turned to noise and back", columns, lines, words=())
    print(f"clip {cfg.clip} in sampling, EMA weights of step {trained.step}\n")
    print_files(*pictures, run.summary_file)


def _interpolate(
    cfg: DictConfig, trained: TrainedRun, denoiser: Denoiser, sampler: DDIM, device: torch.device
) -> Tensor:
    """Draw (pairs, columns, C, H, W) in [−1, 1], on the host: row i from latent 2 i to latent 2 i + 1 of the seed."""
    shape, columns = trained.data.test.pixels.shape[1:], cfg.between + 2
    ends = Streams(cfg.seed, "latent", range(2 * cfg.pairs), device).normal(shape)
    ways = [interpolate(ends[0::2], ends[1::2], column / (columns - 1)) for column in range(columns)]
    label = class_labels_for([i // columns for i in range(cfg.pairs * columns)], trained.classes, device=device)
    drawn = _in_batches(partial(_draw, denoiser, sampler), torch.stack(ways, dim=1).flatten(0, 1), label)
    return drawn.cpu().reshape(cfg.pairs, columns, *shape)


def _draw(denoiser: Denoiser, sampler: DDIM, noise: Tensor, class_label: Tensor | None) -> Tensor:
    return sampler(denoiser, lambda: noise, class_label).clamp(-1, 1)


def _in_batches(mapped: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, class_label: Tensor | None) -> Tensor:
    batches = [slice(first, first + _BATCH) for first in range(0, len(x), _BATCH)]
    return torch.cat([mapped(x[batch], None if class_label is None else class_label[batch]) for batch in batches])


def _card(cfg: DictConfig, trained: TrainedRun, steps: int) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    return {
        **trained.source,
        **trained.data.identity,
        "split": "test",
        "images": cfg.images,
        "classes": trained.classes,
        "steps": steps,
        "grid": OmegaConf.to_container(cfg.grid),
        "guidance": None if cfg.get("guidance") is None else OmegaConf.to_container(cfg.guidance),
        "clip_of_drawing": cfg.clip,
        "clip_of_inversion": None,
        "precision": "float32",
    }
