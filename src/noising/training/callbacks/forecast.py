"""The callback that says, before the first step, what a training will cost besides its steps, and at its end."""

import logging
import time
from typing import TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from noising.data.image_data import ImageData
from noising.diffusion.drawing import in_evaluation
from noising.diffusion.likelihood.adaptive import Adaptive
from noising.diffusion.samplers import Sampler
from noising.training.callbacks.quality import QualityCheck
from noising.training.callbacks.samples import PATH_IMAGES, SampleGrid
from noising.training.module import DiffusionModule

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Callback)

EVALUATIONS_OF_AN_IMAGE = 3
"""The cost of a training image in evaluations of the network, since its backward pass takes about as long as two."""
PAPERS = 50_000
"""Samples that the literature measures."""
FEW, PATIENCE = 8, 0.5
"""Images of the first batch that is timed, and the seconds that a whole batch may take to be timed as well."""


class Forecast(Callback):
    """Counts the network's evaluations of a training, its checks and its end, times one, and logs both."""

    def __init__(self, data: ImageData, sampler: Sampler) -> None:
        self.data, self.sampler = data, sampler

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if not trainer.is_global_zero:
            return
        training, checks, end = self.evaluations(trainer, pl_module)
        second = trainer.world_size / self._seconds(pl_module)
        test, images = pl_module.test, len(getattr(self.data, self.data.tested).pixels)
        bound = test.estimator.most_evaluations(test.timesteps) * images
        if isinstance(test.estimator, Adaptive):  # which plans when it has seen a few images
            unit = f" and the bound to ± {test.estimator.stderr:g} (at most {bound:,})"
        else:
            end, unit = end + bound, ""
        ahead = (f"{count:,} (about {_duration(count / second)})" for count in (training, checks, end))
        log.info("planned evaluations of the network: training %s, checks %s, at the end %s%s", *ahead, unit)
        for quality in (callback.quality for callback in _of(trainer, QualityCheck) if callback.quality is not None):
            if quality.total < PAPERS:
                log.info(
                    f"measured at the end: {quality.repeats} x {quality.count:,} samples of {self.sampler.steps:,} "
                    f"steps; papers measure {PAPERS:,} samples of {test.timesteps:,} steps: metrics.n={PAPERS} "
                    f"metrics.repeats=1 sampler.steps={test.timesteps}"
                )

    def evaluations(self, trainer: Trainer, module: DiffusionModule) -> tuple[int, int, int]:
        """Evaluations of the training that is left, of its checks, and of the end but for the bound."""
        done, steps = trainer.global_step, trainer.max_steps
        an_image = self.sampler.evaluations(module.denoiser)
        validation, every = module.validation, int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        validated = validation.estimator.most_evaluations(validation.timesteps) * len(self.data.val.pixels)
        checks, end = _times(every, done, steps) * validated, 0
        for grid in _of(trainer, SampleGrid):
            checks += _times(grid.every_n_steps, done, steps) * grid.count * an_image
            end += (grid.count + min(grid.count, PATH_IMAGES)) * an_image
        for check in _of(trainer, QualityCheck):
            checks += _times(check.every, done, steps) * check.checked.total * an_image if check.checked else 0
            end += check.quality.total * an_image if check.quality else 0
        return (steps - done) * self.data.batch_size * EVALUATIONS_OF_AN_IMAGE, checks, end

    def _seconds(self, module: DiffusionModule) -> float:
        """Seconds that the network takes to evaluate an image in a batch, in float32 as all evaluations do."""
        size = min(self.data.batch_size, 64)
        seconds = 0.0
        with in_evaluation(module.denoiser):
            for images in (FEW, FEW, size, size):  # the first prepares the device
                if images > FEW and seconds * size > PATIENCE:
                    break
                x, class_label = self.data.batch("train", slice(images), module.device)
                level = module.denoiser.schedule(torch.full((len(x),), 0.5, dtype=torch.float64))
                began = time.perf_counter()
                output, _ = module.denoiser.output(x, level, class_label if module.classes else None)
                output[0, 0, 0, 0].item()  # waits for a device
                seconds = (time.perf_counter() - began) / len(x)
        return seconds


def _of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def _times(every: int, done: int, steps: int) -> int:
    """The number of multiples of `every` after the step `done` and up to `steps`; 0 for every = 0."""
    return steps // every - done // every if every else 0


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
