"""`sample`: images from a checkpoint, as one .npz or single PNGs, a grid, and how they come out of noise."""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from noising.commands.loggers import open_results
from noising.commands.sample_jobs import SampleJob, SampleShards
from noising.commands.tables import relative
from noising.config.secrets import without_secrets
from noising.diffusion.drawing import frames
from noising.plots.grids import image_grid, sample_grid, save_animation, save_png, side_by_side
from noising.plots.samples import path_strip
from noising.runs.declarations import Declaration
from noising.runs.folder import Run, replacing
from noising.runs.resume import require_same_options
from noising.runs.status import run_status


def sample(cfg: DictConfig, run_dir: Path) -> None:
    """Draw cfg.n images: image i depends on (seed, i) alone, whatever the batch size and the devices."""
    run, config = Run(run_dir), without_secrets(cfg)
    if cfg.resume:
        require_same_options(run, config, may_differ=("device", "devices", "logger", "tags"))
        if run.status == "finished":
            print(f"{relative(run.path)} is finished: there is nothing left to draw")
            return
    job = SampleJob(cfg)
    shards = SampleShards(run.path / "shards", job, path=True)
    shards.require_same()
    results = open_results(run, cfg, "sample")
    with run_status(results, config):
        results.declare({"images": Declaration("images drawn")})
        images = job.data.to_8bit(shards.fill())
        written = _write(run, images, job.class_labels(range(cfg.n)), cfg.format)
        save_png(run.samples_image, sample_grid(images, job.classes if cfg.class_label is None else 0))
        path = job.data.to_8bit(shards.read_path())
        save_animation(run.reverse_process, [side_by_side(*frame) for frame in path])
        levels = job.sampler.chain(job.denoiser.schedule).steps.earlier
        numbers = [job.sampler.steps - 1 - step for step in frames(job.sampler.steps, len(path))]
        path_strip(run.path / "path.png", path, levels.t[numbers].tolist(), levels.log_snr[numbers].tolist())
        step = job.trained.step
        results.write("sample/images", cfg.n, step, job.card)
        for name, picture in (("samples", run.samples_image), ("path", run.path / "path.png")):
            results.write_image(name, picture, step, job.description)
        shards.remove()
    print(f"{cfg.n} images in {relative(run.path)}: {written}, samples.png, path.png, reverse_process.gif")


def _write(run: Run, images: Tensor, classes: Tensor | None, kind: str) -> str:
    """Write (n, C, H, W) uint8 as one .npz or as single PNGs, and return the name of what was written.

    The .npz is as the field's evaluators read it: arr_0 is (n, H, W, C), and arr_1 (n,) int64 the classes, if any.
    """
    if kind == "npz":
        with replacing(run.path / "samples.npz") as file:
            labels = [] if classes is None else [classes.numpy()]
            np.savez_compressed(file, images.permute(0, 2, 3, 1).numpy(), *labels)
        return "samples.npz"
    for number, image in enumerate(images):
        save_png(run.path / "images" / f"{number:06d}.png", image_grid(image[None], gap=0, enlarge=False))
    return "images/"
