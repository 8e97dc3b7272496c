"""The callback that measures the quality of samples: on few while training, if chosen, and on all at the end."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from noising.diffusion.drawing import class_labels_for, draw_images
from noising.diffusion.samplers import Sampler
from noising.metrics.measurement import SampleQuality
from noising.plots.samples import neighbour_rows
from noising.randomness import NOISE
from noising.runs.declarations import Declaration, measurements
from noising.runs.results import Results
from noising.training.checkpoints import saved
from noising.training.ema import EMA
from noising.training.module import DiffusionModule
from noising.training.progress import StepProgress

log = logging.getLogger(__name__)

MAX_EPOCHS = 10**9
COST = {
    "quality_seconds": Declaration("time to draw and measure samples", "s", shown=False),
    "quality_share": Declaration("fraction of the run's time to draw and measure samples", shown=False),
    "evaluations_per_image": Declaration("network evaluations per image"),
    "seconds_per_image": Declaration("cost", "s per image"),
    "seconds_of_metrics": Declaration("time to measure samples", "s", shown=False),
}
"""Declarations of the cost of samples."""


class QualityCheck(Callback):
    """Draws and measures samples of the averaged weights: val/NAME while training, test/NAME at the end.

    The ranks share the batches, and the samples are put in order again, so that any number of ranks gives the same
    numbers. Draws are keyed by (seed, index), so that a check does not change the training that follows.
    """

    def __init__(
        self,
        results: Results,
        sampler: Sampler,
        ema: EMA,
        seed: int,
        config: dict[str, Any],
        quality: SampleQuality | None,
        classes: int = 0,
        every_n_steps: int = 0,
        every_n_epochs: float = 0,
        n: int | None = None,
        batch_size: int = 256,
        keep_best: bool = False,
    ) -> None:
        """Plan the checks.

        quality: None measures nothing; every_n_steps or every_n_epochs: steps, or passes over the training images,
        between checks while training, 0 for none; n: samples of a check, None for as many as one repeat at the end has;
        keep_best: write checkpoints/best_NAME.ckpt whenever a check has found the best first number of the metric.

        Raises ValueError for numbers out of range, and if the best is to be kept of a metric that has none; ConfigError
        for an n that cannot be measured.
        """
        if every_n_steps < 0 or every_n_epochs < 0 or (every_n_steps and every_n_epochs):
            raise ValueError("only one of every_n_steps and every_n_epochs can be positive, neither negative")
        if every_n_epochs > MAX_EPOCHS:
            raise ValueError(f"every_n_epochs must be at most {MAX_EPOCHS}, got {every_n_epochs}; 0 for no checks")
        if keep_best and not (every_n_steps or every_n_epochs):
            raise ValueError("keep_best=true needs checks to choose from: set every_n_steps or every_n_epochs")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.results, self.sampler, self.ema, self.seed, self.config = results, sampler, ema, seed, config
        self.quality, self.classes, self.batch_size, self.keep_best = quality, classes, batch_size, keep_best
        self.every = every_n_steps
        if every_n_epochs and quality is not None:
            data = quality.data
            self.every = max(1, round(every_n_epochs * len(data.train.pixels) / data.batch_size))
        self.checked = quality.for_validation(n) if quality is not None and self.every else None
        if keep_best and self.checked is not None and self.checked.declared[self.checked.leading].better is None:
            raise ValueError("keep_best=true: the metric does not say whether lower or higher is better")
        self.best = math.inf  # of the first number, negative where higher is better
        self.seconds = 0.0
        self._began = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.quality is not None and trainer.is_global_zero:
            self.results.declare({**self.quality.declared, **COST})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        unfinished = (batch_idx + 1) % trainer.accumulate_grad_batches
        if self.checked is None or trainer.global_step % self.every or unfinished:
            return
        assert isinstance(pl_module, DiffusionModule)
        with self.ema.swapped(pl_module.denoiser):
            numbers = self._evaluate(self.checked, trainer, pl_module)
        changing = {name: value for name, value in numbers.items() if not name.endswith("_baseline")} | self._cost
        if trainer.is_global_zero:
            self.results.write_all({f"val/{name}": value for name, value in changing.items()}, trainer.global_step)
        name = self.checked.leading
        numbers = trainer.strategy.broadcast(numbers)  # the first rank's
        pl_module.follow({f"val/{measured}": numbers[measured] for measured in measurements(numbers)})
        value = numbers.get(name, math.nan)
        found = -value if self.checked.declared[name].better == "higher" else value
        if found < self.best:
            before, self.best = self.best, found
            if self.keep_best and not saved(trainer, self.results.run.best_checkpoint.with_name(f"best_{name}.ckpt")):
                self.best = before

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure all samples; during the test the averaged weights are in place."""
        if self.quality is None:
            return
        assert isinstance(pl_module, DiffusionModule)
        numbers = self._evaluate(self.quality, trainer, pl_module)
        if trainer.is_global_zero and numbers:
            card = {
                "step": pl_module.trained_steps,
                "weights": {"decay": self.ema.decay, "updates": self.ema.updates},
                "sampler": self.config["sampler"],
                "grid": self.config["grid"],
                "guidance": None,
                "evaluations_per_image": self.sampler.evaluations(pl_module.denoiser),
                "class_label": f"image i is asked for class i mod {self.classes}" if self.classes else None,
                "precision": "float32",
                "seed": self.seed,
                "noise": NOISE,
                **pl_module.origin,
                **self.quality.card,
            }
            cards = {f"test/{name}": card for name in measurements(numbers)}
            step, image = pl_module.trained_steps, self.results.run.neighbours_image
            self.results.write_all(
                {f"test/{name}": value for name, value in (numbers | self._cost).items()}, step, cards
            )
            if (beside := self.quality.neighbours()) is not None:
                with self.results.run.writing(image):
                    neighbour_rows(image, *beside)
                self.results.write_image("neighbours", image, step, "the samples most like a training image")
        trainer.strategy.barrier()

    @property
    def _cost(self) -> dict[str, float]:
        return {"quality_seconds": self.seconds, "quality_share": self.seconds / (time.monotonic() - self._began)}

    def _evaluate(self, quality: SampleQuality, trainer: Trainer, pl_module: DiffusionModule) -> dict[str, float]:
        """The numbers of samples drawn and measured; may be empty on other ranks than the first."""
        began = time.monotonic()
        progress = trainer.progress_bar_callback
        assert isinstance(progress, StepProgress)
        with progress.task("samples", quality.total) as advance:  # the training's clock stands still
            self._draw(quality, trainer, pl_module, advance)
            numbers = quality.compute(class_labels_for(range(quality.total), self.classes))
        if quality.lost:
            log.warning("samples are not measured: %d of %d are not finite", quality.lost, quality.total)
        self.seconds += time.monotonic() - began
        return numbers

    def _draw(
        self, quality: SampleQuality, trainer: Trainer, pl_module: DiffusionModule, advance: Callable[[int], None]
    ) -> None:
        """Draw this rank's batches, and add each to what is measured."""
        data, size = quality.data, min(self.batch_size, quality.total)
        world, rank, device = trainer.world_size, trainer.global_rank, pl_module.device
        shape = (data.channels, data.resolution, data.resolution)
        quality.begin(device)
        for first in range(rank * size, quality.total, world * size):
            batch = range(first, min(first + size, quality.total))
            class_label = class_labels_for(batch, self.classes, device=device)
            drawn = draw_images(pl_module.denoiser, self.sampler, shape, self.seed, batch, class_label)
            quality.update(batch, data.unscale(drawn), drawn.isfinite().flatten(1).all(dim=1))
            advance(len(batch) * world)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.seconds = float(state_dict["best"]), float(state_dict["seconds"])
