"""Drawing many images from a trained model: in batches over devices, each batch a file, so that a stopped job resumes.

Image i depends on the card and on i alone; devices and batches only share the work out.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from noising.commands.devices import find_devices
from noising.commands.tables import evaluations_bar
from noising.config.moved import with_current_names
from noising.config.theory import build_sampler
from noising.diffusion.drawing import PathFrames, class_labels_for, draw_images
from noising.diffusion.guidance import Guided
from noising.diffusion.samplers import PathPoint, Sampler
from noising.errors import ConfigError, UsageError
from noising.experiment import require_sampler
from noising.randomness import NOISE
from noising.runs.folder import Run, replacing
from noising.trained import TrainedRun, load

OnStep = Callable[[int, PathPoint], None]
PATH_IMAGES = 16


class SampleJobError(UsageError):
    """A worker ended before all images were drawn; those that were stay on the disk."""

    exit_code = 1


class SampleJob:
    """A model, a sampler and a seed: everything that decides the images."""

    def __init__(self, cfg: DictConfig, trained: TrainedRun | None = None, sampler: Sampler | None = None) -> None:
        """cfg: options of `sample`, or their part in `evaluate`; trained: cfg.checkpoint, if it is loaded already.

        sampler: in place of that of the options.

        Raises ConfigError for what is wrong with an option, before any work.
        """
        self.cfg = cfg
        self.trained = trained or load(cfg.checkpoint)
        self.denoiser = self.trained.guided(cfg.get("guidance"))
        self.sampler = sampler or build_sampler(cfg, self.trained.config.timesteps, self.denoiser.schedule)
        self.data, self.classes = self.trained.data, self.trained.classes
        self.class_label: int | None = cfg.get("class_label")
        if self.class_label is not None and self.class_label >= self.classes:
            has = f"has classes 0 to {self.classes - 1}" if self.classes else "was trained without classes"
            raise ConfigError(f"class_label={self.class_label}: the model {has}")
        shape = (self.data.channels, self.data.resolution, self.data.resolution)
        require_sampler(self.sampler, self.denoiser, shape, self.classes)
        self.evaluations = self.sampler.evaluations(self.denoiser)
        guided, unguided = self.denoiser, self.sampler.evaluations(self.trained.denoiser)
        if isinstance(guided, Guided) and guided.interval and guided.scale != 1 and self.evaluations == unguided:
            levels = self.sampler.chain(guided.schedule).steps.later.log_snr
            raise ConfigError(
                f"guidance.interval={list(guided.interval)} holds none of the {self.sampler.steps} steps, whose λ go "
                f"from {float(levels.min()):.3g} to {float(levels.max()):.3g}: widen it, or leave guidance out"
            )
        self.devices = find_devices(cfg.device, cfg.devices)

    @property
    def card(self) -> dict[str, Any]:
        """Everything that the images depend on."""
        config: Any = OmegaConf.to_container(self.cfg)
        in_turn = f"image i is asked for class i mod {self.classes}" if self.classes else None
        guide = getattr(getattr(self.denoiser, "guide", None), "source", None)
        return {
            **self.trained.source,
            **{group: config.get(group) for group in ("sampler", "grid", "guidance")},
            **({"guide": guide} if guide else {}),
            "evaluations_per_image": self.evaluations,
            "class_label": self.class_label if self.class_label is not None else in_turn,
            "precision": "float32",
            "seed": self.cfg.seed,
            "noise": NOISE,
        }

    @property
    def description(self) -> str:
        """One line on the images, for a caption."""
        guided = "" if self.cfg.get("guidance") is None else ", guided"
        sampler = f"{type(self.sampler).__name__}, {self.sampler.steps} steps{guided}"
        return f"{sampler}, EMA weights of step {self.trained.step}, seed {self.cfg.seed}"

    def class_labels(self, batch: range, device: torch.device | str = "cpu") -> Tensor | None:
        """(B,) int64, the classes to draw; None for a model without classes."""
        return class_labels_for(batch, self.classes, self.class_label, device)

    def draw(self, batch: range, device: torch.device, on_step: OnStep | None = None) -> Tensor:
        """Draw a batch: (B, C, H, W) uint8 grey levels on the host.

        Raises ConfigError if an image is not finite: as a grey level nan would be some number.
        """
        shape = (self.data.channels, self.data.resolution, self.data.resolution)
        labels = self.class_labels(batch, device)
        denoiser = self.denoiser.to(device)
        drawn = draw_images(denoiser, self.sampler, shape, self.cfg.seed, batch, labels, on_step)
        lost = (~drawn.isfinite()).flatten(1).any(dim=1).tolist()
        if any(lost):
            raise ConfigError(
                f"image {batch[lost.index(True)]} is not finite: the weights are not finite, or the sampler "
                "diverged; try sampler.clip=1.0, more sampler.steps or another grid"
            )
        return self.data.unscale(drawn).cpu()


class SampleShards:
    """Images drawn so far: a folder with a file for each batch, whole or not there."""

    def __init__(self, folder: Path, job: SampleJob, path: bool = False) -> None:
        """path: store the paths of the first images from noise, too."""
        self.folder, self.job, self._stores_path = folder, job, path
        size, n = job.cfg.batch_size, job.cfg.n
        self.batches = [range(first, min(first + size, n)) for first in range(0, n, size)]
        self._card_file, self._path_file = folder / "card.json", folder / "path.npz"

    def require_same(self) -> None:
        """Raise ConfigError if the folder holds images of another job."""
        if not self._card_file.exists():
            return
        before = with_current_names(json.loads(self._card_file.read_text(encoding="utf-8")))
        now = json.loads(json.dumps(self._card))
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                raise ConfigError(
                    f"resume: {self.folder} holds images drawn with {name}={before.get(name)}, "
                    f"not {now.get(name)}: use that value again, or start a new run without resume"
                )

    def fill(self) -> Tensor:
        """Draw the missing batches, with a progress bar, and read all: (n, C, H, W) uint8 grey levels."""
        with replacing(self._card_file) as file:
            file.write(json.dumps(self._card).encode())
        missing = [batch for batch in self.batches if not _is_whole(self._file(batch))]
        evaluations, steps = self.job.evaluations, self.job.sampler.steps
        with evaluations_bar(sum(map(len, missing)) * evaluations) as advance:
            if len(self.job.devices) == 1:
                for batch in missing:
                    size = len(batch)
                    self.draw(batch, self.job.devices[0], lambda: advance(size * evaluations / steps))  # noqa: B023
            else:
                self._share_out(missing, lambda batch: advance(len(batch) * evaluations))
        return torch.cat([_load(self._file(batch), "images") for batch in self.batches])

    def draw(self, batch: range, device: torch.device, after_step: Callable[[], None] = lambda: None) -> None:
        """Draw one batch into its file, calling after_step after each step."""
        stores_path = self._stores_path and batch.start == 0
        frames = PathFrames(self.job.sampler.steps, PATH_IMAGES) if stores_path else None

        def on_step(step: int, point: PathPoint) -> None:
            if frames:
                frames(step, point)
            after_step()

        began = time.perf_counter()
        images = self.job.draw(batch, device, on_step)
        seconds = time.perf_counter() - began
        if frames:
            _save(self._path_file, images=self.job.data.unscale(frames.tensor).cpu().numpy())
        _save(self._file(batch), images=images.numpy(), seconds=seconds)

    def read_path(self) -> Tensor:
        """Read (frames, 2, B, C, H, W) uint8 grey levels: x_t and x̂ of the first images."""
        return _load(self._path_file, "images")

    @property
    def seconds(self) -> float:
        """Seconds of all devices on all images, summed."""
        return sum(float(_load(self._file(batch), "seconds")) for batch in self.batches)

    def remove(self) -> None:
        """Remove the folder, once the images are elsewhere."""
        for file in (self._card_file, self._path_file, *map(self._file, self.batches)):
            file.unlink(missing_ok=True)
        self.folder.rmdir()

    def _share_out(self, missing: list[range], done: Callable[[range], None]) -> None:
        """Give the missing batches to one process a device; done is called after each."""
        spawn = multiprocessing.get_context("spawn")
        devices = spawn.SimpleQueue()
        for device in self.job.devices:
            devices.put(str(device))
        cfg: Any = OmegaConf.to_container(self.job.cfg, resolve=True)
        threads = max(1, torch.get_num_threads() // len(self.job.devices))
        arguments = (cfg, devices, threads, self.folder, self._stores_path)
        with ProcessPoolExecutor(len(self.job.devices), spawn, _begin_worker, arguments) as pool:
            work = {pool.submit(_draw_in_worker, batch): batch for batch in missing}
            try:
                for finished in as_completed(work):
                    finished.result()
                    done(work[finished])
            except BrokenProcessPool as error:
                raise SampleJobError(
                    f"a process that was sampling has been killed (out of memory?): go on with "
                    f"{Run(self.folder.parent).resuming} on fewer devices, or start again with a smaller batch_size"
                ) from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    @property
    def _card(self) -> dict[str, Any]:
        card = {**self.job.card, "batch_size": self.job.cfg.batch_size, "n": self.job.cfg.n}
        return {name: value for name, value in card.items() if name != "checkpoint"}  # sha256 tells, wherever it lies

    def _file(self, batch: range) -> Path:
        return self.folder / f"{batch.start:09d}.npz"


def _save(file: Path, **arrays: Any) -> None:
    with replacing(file) as target:
        np.savez(target, **arrays)


def _is_whole(file: Path) -> bool:
    """Whether a file is there and as it was written: a disk may lose what a rename has promised."""
    try:
        with zipfile.ZipFile(file) as arrays:
            return arrays.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False


def _load(file: Path, name: str) -> Tensor:
    with np.load(file) as arrays:
        return torch.from_numpy(arrays[name])


_worker: SampleShards  # of a worker process


def _begin_worker(cfg: dict[str, Any], devices: Any, threads: int, folder: Path, path: bool) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker = SampleShards(folder, SampleJob(OmegaConf.create({**cfg, "devices": 1, "device": devices.get()})), path)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _draw_in_worker(batch: range) -> None:
    _worker.draw(batch, _worker.job.devices[0])
