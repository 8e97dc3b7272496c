"""`latents`: what a trained model draws between two noises, and how much of an image comes back from its own noise."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from noising.commands.devices import find_device
from noising.commands.tables import evaluations_bar, number
from noising.config.instantiate import make, require_whole
from noising.config.secrets import without_secrets
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.drawing import class_labels_for, in_evaluation
from noising.diffusion.inversion import interpolate, invert
from noising.diffusion.samplers import DDIM
from noising.errors import ConfigError, config_errors
from noising.plots.inversion import interpolation_rows, reconstruction_error, reconstruction_rows
from noising.randomness import Streams
from noising.runs.folder import Run
from noising.runs.status import run_status
from noising.trained import TrainedRun, load

__all__ = ["latents"]


_BATCH = 64
_UNITS = {
    "latents/reconstruction_rmse": {"unit": "8-bit grey levels, of pixels kept in [-1, 1] and not rounded"},
    "latents/inverted_std": {"unit": "standard deviations of p(x_T)"},
}
Advance = Callable[[float], None]


class _Reconstructions(NamedTuple):
    """What came back of some test images, for each number of steps."""

    indices: Tensor
    """Of the images, (B,)."""
    drawn: list[Tensor]
    """(B, C, H, W) in [−1, 1] on the host."""
    stds: list[float]
    """Of the noise that the images were turned into; 1 where it is noise like any other."""
    errors: Tensor
    """(S, B), the root mean square over an image's pixels, in 8-bit grey levels."""

    @property
    def rmse(self) -> list[float]:
        """Over all images, for each number of steps."""
        return [float(value) for value in self.errors.square().mean(dim=1).sqrt()]


def latents(cfg: DictConfig, run_dir: Path) -> None:
    """Leave three pictures in run_dir, and the errors of reconstruction with their card in summary.json."""
    for option, least in (("pairs", 1), ("between", 1), ("images", 1), ("seed", 0)):
        require_whole(cfg, option, least)
    steps = _steps(cfg)
    trained = load(cfg.checkpoint)
    data, run, device = trained.data, Run(run_dir), find_device(cfg.device)
    require_whole(cfg, "images", 1, most=len(data.test.pixels))
    denoiser = trained.guided(cfg.get("guidance"))
    samplers = _samplers(cfg, steps, trained, denoiser)
    denoiser = denoiser.to(device)
    costs = [sampler.evaluations(denoiser) for sampler in samplers]
    with run_status(run, without_secrets(cfg)):
        total = cfg.pairs * (cfg.between + 2) * costs[-1] + 2 * cfg.images * sum(costs)
        with evaluations_bar(total) as advance, in_evaluation(denoiser):
            between = _interpolate(cfg, trained, denoiser, samplers[-1], device, advance)
            found = _reconstruct(cfg, trained, denoiser, samplers, device, advance)
        numbers = {"latents/reconstruction_rmse": found.rmse[-1], "latents/inverted_std": found.stds[-1]}
        each = {f"latents/reconstruction_rmse_{s}_steps": rmse for s, rmse in zip(steps, found.rmse, strict=True)}
        run.write(numbers | each, {name: _UNITS[name] | _card(cfg, trained, steps) for name in numbers})
        pictures = _draw_pictures(run, trained, steps, between, found)
    _print(cfg, run, trained, steps, found, pictures)


def _steps(cfg: DictConfig) -> list[int]:
    """From few to many."""
    given = OmegaConf.to_container(cfg.steps) if OmegaConf.is_list(cfg.steps) else None
    if not isinstance(given, list) or not given or any(type(count) is not int or count < 2 for count in given):
        raise ConfigError(f"steps must be a list of whole numbers from 2, as [10,50], got {cfg.steps}")
    return sorted({int(count) for count in given})


def _samplers(cfg: DictConfig, steps: Sequence[int], trained: TrainedRun, denoiser: Denoiser) -> list[DDIM]:
    """One for each number of steps, tried on the schedule."""
    clip = cfg.clip
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf):
        raise ConfigError(f"clip must be a positive number or null, got {clip}")
    grid: Any = make(cfg.grid, "grid", object, timesteps=trained.config.timesteps)
    with config_errors("steps"):
        samplers = [DDIM(count, grid, clip) for count in steps]
    with config_errors("grid"):
        for sampler in samplers:
            sampler.chain(denoiser.schedule)
    return samplers


def _interpolate(
    cfg: DictConfig, trained: TrainedRun, denoiser: Denoiser, sampler: DDIM, device: torch.device, advance: Advance
) -> Tensor:
    """(pairs, columns, C, H, W) in [−1, 1] on the host: row i from latent 2 i to latent 2 i + 1 of the seed."""
    shape, columns = trained.data.test.pixels.shape[1:], cfg.between + 2
    ends = Streams(cfg.seed, "latent", range(2 * cfg.pairs), device).normal(shape)
    ways = [interpolate(ends[0::2], ends[1::2], column / (columns - 1)) for column in range(columns)]
    told = class_labels_for(range(cfg.pairs), trained.classes, device=device)
    told = None if told is None else told.repeat_interleave(columns)
    drawn = _in_batches(partial(_draw, denoiser, sampler), torch.stack(ways, dim=1).flatten(0, 1), told)
    advance(len(drawn) * sampler.evaluations(denoiser))
    return drawn.cpu().reshape(cfg.pairs, columns, *shape)


def _reconstruct(
    cfg: DictConfig,
    trained: TrainedRun,
    denoiser: Denoiser,
    samplers: Sequence[DDIM],
    device: torch.device,
    advance: Advance,
) -> _Reconstructions:
    """Test images, evenly spread over the set, to noise and back."""
    data = trained.data
    pixels, labels = data.test
    indices = torch.arange(cfg.images) * len(pixels) // cfg.images
    x = data.scale(pixels[indices].to(device))
    told = labels[indices].to(device) if trained.classes and labels is not None else None
    drawn, stds, errors = [], [], []
    for sampler in samplers:
        noise = _in_batches(partial(_noise_of, denoiser, sampler), x, told)
        y = _in_batches(partial(_draw, denoiser, sampler), noise, told)
        drawn.append(y.cpu())
        stds.append(float(noise.square().mean().sqrt()))
        errors.append(127.5 * (y - x).square().flatten(1).mean(dim=1).sqrt().cpu())  # [−1, 1] is 255 levels
        advance(2 * len(x) * sampler.evaluations(denoiser))
    return _Reconstructions(indices, drawn, stds, torch.stack(errors))


def _noise_of(denoiser: Denoiser, sampler: DDIM, x: Tensor, told: Tensor | None) -> Tensor:
    return invert(denoiser, sampler.chain(denoiser.schedule), x, told) / denoiser.schedule.prior_std


def _draw(denoiser: Denoiser, sampler: DDIM, noise: Tensor, told: Tensor | None) -> Tensor:
    return sampler(denoiser, lambda: noise, told).clamp(-1, 1)


def _in_batches(mapped: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, told: Tensor | None) -> Tensor:
    batches = [slice(first, first + _BATCH) for first in range(0, len(x), _BATCH)]
    return torch.cat([mapped(x[batch], None if told is None else told[batch]) for batch in batches])


def _card(cfg: DictConfig, trained: TrainedRun, steps: Sequence[int]) -> dict[str, Any]:
    """All that the numbers depend on."""
    return {
        **trained.source,
        "data": trained.data.name,
        "split": "test",
        "images": cfg.images,
        "classes": trained.classes,
        "steps": steps[-1],
        "grid": OmegaConf.to_container(cfg.grid),
        "guidance": None if cfg.get("guidance") is None else OmegaConf.to_container(cfg.guidance),
        "clip_of_drawing": cfg.clip,
        "clip_of_inversion": None,
        "precision": "float32",
    }


def _draw_pictures(
    run: Run, trained: TrainedRun, steps: Sequence[int], between: Tensor, found: _Reconstructions
) -> list[Path]:
    data, classes = trained.data, trained.classes
    files = [run.path / f"{name}.png" for name in ("interpolation", "reconstruction", "reconstruction_error")]

    def seen(x: Tensor) -> Tensor:
        return data.to_8bit(data.unscale(x))

    names = [f"pair {i}" + (f", class {i % classes}" if classes else "") for i in range(len(between))]
    title = f"$x_T$ on an arc between two, drawn by {steps[-1]} steps of DDIM"
    interpolation_rows(files[0], seen(between), names, title)
    title = f"Test images of {data.name} ({len(found.indices)}), by DDIM to noise and back"
    originals, drawn = data.to_8bit(data.test.pixels[found.indices]), [seen(y) for y in found.drawn]
    reconstruction_rows(files[1], originals, drawn, steps, found.rmse, title)
    reconstruction_error(files[2], steps, found.errors, 255 / (data.levels - 1), title)
    return files


def _print(
    cfg: DictConfig,
    run: Run,
    trained: TrainedRun,
    steps: Sequence[int],
    found: _Reconstructions,
    pictures: Sequence[Path],
) -> None:
    title = f"{cfg.images} test images of {trained.data.name} to noise and back"
    table = Table(title=title, title_justify="left")
    for column in ("steps each way", "RMSE, of 255", "worst image", "std of the noise"):
        table.add_column(column, justify="right")
    for row in zip(steps, found.rmse, found.errors.amax(dim=1).tolist(), found.stds, strict=True):
        table.add_row(str(row[0]), *map(number, row[1:]))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"clip {cfg.clip} where images are drawn, EMA weights of step {trained.step}")
    console.print()
    for file in (*pictures, run.summary_file):
        console.print(os.path.relpath(file), highlight=False)
