"""`latents`: images drawn between two noises, and how much of an image comes back from its own noise."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from noising.commands.devices import find_device
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
from noising.runs.folder import Run
from noising.runs.status import run_status
from noising.trained import TrainedRun, load

_BATCH = 64
_UNITS = {
    "latents/reconstruction_rmse": {"unit": "8-bit grey levels, of pixels kept in [-1, 1] and not rounded"},
    "latents/inverted_std": {"unit": "standard deviations of p(x_T)"},
}
Advance = Callable[[float], None]


class _Reconstructions(NamedTuple):
    """Test images to noise and back, for S numbers of steps."""

    indices: Tensor
    """(B,), among the test images."""
    drawn: list[Tensor]
    """(B, C, H, W) in [−1, 1] on the host, for each number of steps."""
    stds: list[float]
    """Standard deviation of the noise that the images became, for each number of steps; 1 is that of p(x_T)."""
    errors: Tensor
    """(S, B), root mean square errors over the pixels of each image, in 8-bit grey levels."""

    @property
    def rmse(self) -> list[float]:
        """Root mean square errors over all images, for each number of steps."""
        return [float(value) for value in self.errors.square().mean(dim=1).sqrt()]


def latents(cfg: DictConfig, run_dir: Path) -> None:
    """Leave three pictures in run_dir, and the errors of reconstruction with their card in summary.json."""
    steps = sorted(set(cfg.steps))
    trained = load(cfg.checkpoint)
    run, device = Run(run_dir), find_device(cfg.device)
    available = len(trained.data.test.pixels)
    if cfg.images > available:
        raise ConfigError(f"images must be a whole number from 1 to {available}, got {cfg.images}")
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
    rows = zip(steps, found.rmse, found.errors.amax(dim=1).tolist(), found.stds, strict=True)
    print_table(
        f"{cfg.images} test images of {trained.data.name} to noise and back",
        ("steps each way", "RMSE, of 255", "worst image", "std of the noise"),
        [[str(count), *map(number, measured)] for count, *measured in rows],
        words=(),
    )
    print(f"clip {cfg.clip} where images are drawn, EMA weights of step {trained.step}\n")
    print_files(*pictures, run.summary_file)


def _samplers(cfg: DictConfig, steps: Sequence[int], trained: TrainedRun, denoiser: Denoiser) -> list[DDIM]:
    """A sampler for each number of steps, tried on the schedule."""
    clip = cfg.clip
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
    """Draw (pairs, columns, C, H, W) in [−1, 1], on the host: row i from latent 2 i to latent 2 i + 1 of the seed."""
    shape, columns = trained.data.test.pixels.shape[1:], cfg.between + 2
    ends = Streams(cfg.seed, "latent", range(2 * cfg.pairs), device).normal(shape)
    ways = [interpolate(ends[0::2], ends[1::2], column / (columns - 1)) for column in range(columns)]
    label = class_labels_for(range(cfg.pairs), trained.classes, device=device)
    label = None if label is None else label.repeat_interleave(columns)
    drawn = _in_batches(partial(_draw, denoiser, sampler), torch.stack(ways, dim=1).flatten(0, 1), label)
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
    """Turn test images, evenly spread over the set, into noise and back."""
    images = trained.image_set("test", device)
    indices = torch.arange(cfg.images) * images.size // cfg.images
    x, label = images.fetch(indices)
    label = label if trained.classes else None
    drawn, stds, errors = [], [], []
    for sampler in samplers:
        noise = _in_batches(partial(_noise_of, denoiser, sampler), x, label)
        y = _in_batches(partial(_draw, denoiser, sampler), noise, label)
        drawn.append(y.cpu())
        stds.append(float(noise.square().mean().sqrt()))
        errors.append(127.5 * (y - x).square().flatten(1).mean(dim=1).sqrt().cpu())  # [−1, 1] is 255 levels
        advance(2 * len(x) * sampler.evaluations(denoiser))
    return _Reconstructions(indices, drawn, stds, torch.stack(errors))


def _noise_of(denoiser: Denoiser, sampler: DDIM, x: Tensor, class_label: Tensor | None) -> Tensor:
    return invert(denoiser, sampler.chain(denoiser.schedule), x, class_label) / denoiser.schedule.prior_std


def _draw(denoiser: Denoiser, sampler: DDIM, noise: Tensor, class_label: Tensor | None) -> Tensor:
    return sampler(denoiser, lambda: noise, class_label).clamp(-1, 1)


def _in_batches(mapped: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, class_label: Tensor | None) -> Tensor:
    batches = [slice(first, first + _BATCH) for first in range(0, len(x), _BATCH)]
    return torch.cat([mapped(x[batch], None if class_label is None else class_label[batch]) for batch in batches])


def _card(cfg: DictConfig, trained: TrainedRun, steps: Sequence[int]) -> dict[str, Any]:
    """Everything that the numbers depend on."""
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
