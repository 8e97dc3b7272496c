"""`sample`: images from a checkpoint, as a grid, single PNGs, one .npz, and the reverse process in motion."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from noising.build import build_sampler
from noising.configuration import require_whole
from noising.jobs.devices import find_device
from noising.jobs.summary import recording
from noising.trained import load
from noising.training.figures import image_grid, save_animation, save_png
from noising.training.run import Run, replacing
from noising.training.sampling import draw_images, draw_path

__all__ = ["sample"]

GRID_IMAGES, PATH_IMAGES = 64, 16


def sample(cfg: DictConfig, run_dir: Path) -> None:
    """Draw cfg.n images: image i depends on (seed, i) alone, whatever the batch size."""
    for option, least in (("n", 1), ("batch_size", 1), ("seed", 0)):
        require_whole(cfg, option, least)
    trained = load(cfg.checkpoint)
    sampler = build_sampler(cfg, trained.config.timesteps, trained.denoiser.schedule)
    data, run = trained.data, Run(run_dir)
    denoiser = trained.denoiser.to(find_device(cfg.device))
    shape = (data.channels, data.resolution, data.resolution)
    card = {
        **trained.source,
        "sampler": OmegaConf.to_container(cfg.sampler),
        "grid": OmegaConf.to_container(cfg.grid),
        "evaluations_per_image": sampler.evaluations(denoiser),
        "seed": cfg.seed,
    }
    batches = [range(first, min(first + cfg.batch_size, cfg.n)) for first in range(0, cfg.n, cfg.batch_size)]
    with recording(run, OmegaConf.to_container(cfg, resolve=True)):
        drawn = [draw_images(denoiser, sampler, shape, cfg.seed, batch).cpu() for batch in track(batches, "sampling")]
        images = data.to_8bit(data.unscale(torch.cat(drawn)))
        for number, image in enumerate(images):
            save_png(run.path / "images" / f"{number:06d}.png", image_grid(image[None], gap=0, enlarge=False))
        with replacing(run.path / "samples.npz") as file:
            np.savez_compressed(file, images.permute(0, 2, 3, 1).numpy())
        save_png(run.samples_image, image_grid(images[:GRID_IMAGES]))
        path = draw_path(denoiser, sampler, shape, cfg.seed, range(min(cfg.n, PATH_IMAGES)))
        save_animation(run.reverse_process, [image_grid(data.to_8bit(data.unscale(x_t))) for x_t in path.cpu()])
        run.record({"sample/images": cfg.n}, {"sample/images": card})
    print(f"{cfg.n} images in {os.path.relpath(run.path)}: images/, samples.npz, samples.png, reverse_process.gif")
