"""The callback that measures the quality of samples: on few while training, if chosen, and on all at the end."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from noising.diffusion.drawing import class_labels_for, draw_images
from noising.diffusion.samplers import Sampler
from noising.metrics.quality import SampleQuality, measured
from noising.plots.samples import neighbour_rows
from noising.runs.folder import Run
from noising.training.ema import EMA
from noising.training.loggers import log_image
from noising.training.module import DiffusionModule
from noising.training.progress import StepProgress

log = logging.getLogger(__name__)

MAX_EPOCHS = 10**9


class QualityCheck(Callback):
    """Draws with the averaged weights on all ranks, and measures on rank 0: val/NAME in training, test/NAME at the end.

    The ranks share the batches, and the features are put in order again, so that any number of ranks gives the same
    numbers. Draws are keyed by (seed, index), so that a check does not change the training that follows.
    """

    def __init__(
        self,
        run: Run,
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
        """quality: None measures nothing; every_n_steps or every_n_epochs: steps, or passes over the training images,
        between checks while training, 0 for none; n: samples of a check, None for as many as one repeat at the end has;
        keep_best: write checkpoints/best_NAME.ckpt whenever a check has found the least Fréchet distance.

        Raises ValueError for numbers out of range, ConfigError for an n that cannot be measured.
        """
        if every_n_steps < 0 or every_n_epochs < 0 or (every_n_steps and every_n_epochs):
            raise ValueError("one of every_n_steps and every_n_epochs can be positive, and neither negative")
        if every_n_epochs > MAX_EPOCHS:
            raise ValueError(f"every_n_epochs must be at most {MAX_EPOCHS}, got {every_n_epochs}; 0 for no checks")
        if keep_best and not (every_n_steps or every_n_epochs):
            raise ValueError("keep_best=true needs checks to choose from: set every_n_steps or every_n_epochs")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.run, self.sampler, self.ema, self.seed, self.config = run, sampler, ema, seed, config
        self.quality, self.classes, self.batch_size, self.keep_best = quality, classes, batch_size, keep_best
        self.every = every_n_steps
        if every_n_epochs and quality is not None:
            data = quality.data
            self.every = max(1, round(every_n_epochs * len(data.train.pixels) / data.batch_size))
        self.checked = quality.for_validation(n) if quality is not None and self.every else None
        self.best = math.inf
        self.seconds = 0.0
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        unfinished = (batch_idx + 1) % trainer.accumulate_grad_batches
        if self.checked is None or trainer.global_step % self.every or unfinished:
            return
        assert isinstance(pl_module, DiffusionModule)
        with self.ema.swapped(pl_module):
            numbers, _ = self._evaluate(self.checked, trainer, pl_module)
        changing = {name: value for name, value in numbers.items() if not name.endswith("_baseline")} | self._cost
        pl_module.write({f"val/{name}": value for name, value in changing.items()})
        distance = self.checked.metric.distance
        found = float(trainer.strategy.broadcast(numbers.get(distance, math.inf)))  # the first rank's
        if found < self.best:
            self.best = found
            if self.keep_best:
                trainer.save_checkpoint(self.run.best_checkpoint.with_name(f"best_{distance}.ckpt"))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure all samples; during the test the averaged weights are in place."""
        if self.quality is None:
            return
        assert isinstance(pl_module, DiffusionModule)
        numbers, (features, pixels) = self._evaluate(self.quality, trainer, pl_module)
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
                **self.quality.card,
            }
            cards = {f"test/{name}": card for name in measured(numbers)}
            self.run.write({f"test/{name}": value for name, value in (numbers | self._cost).items()}, cards)
            nearest = self.quality.nearest_to_training(features)
            images = self.quality.images_of(nearest, pixels)
            neighbour_rows(self.run.neighbours_image, *images, nearest.samples, nearest.nearness)
            log_image(trainer.loggers, "neighbours", self.run.neighbours_image, pl_module.trained_steps)
        trainer.strategy.barrier()

    @property
    def _cost(self) -> dict[str, float]:
        return {"quality_seconds": self.seconds, "quality_share": self.seconds / (time.monotonic() - self._began)}

    def _evaluate(
        self, quality: SampleQuality, trainer: Trainer, pl_module: DiffusionModule
    ) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        """The numbers, empty on other ranks than the first; features and pixels of all samples, on every rank."""
        began = time.monotonic()
        progress = trainer.progress_bar_callback
        assert isinstance(progress, StepProgress)
        with progress.task("samples", quality.total) as advance:  # the training's clock stands still
            features, pixels = self._draw(quality, trainer, pl_module, advance)
            numbers: dict[str, float] = {}
            if lost := int((~features.isfinite()).any(1).sum()):
                log.warning("samples are not measured: %d of %d are not finite", lost, len(features))
            elif trainer.is_global_zero:
                numbers = quality.evaluate(features, class_labels_for(range(quality.total), self.classes))
        self.seconds += time.monotonic() - began
        return numbers, (features, pixels)

    def _draw(
        self, quality: SampleQuality, trainer: Trainer, pl_module: DiffusionModule, advance: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """Draw all samples: features (total, dims) float32 and grey levels (total, C, H, W) uint8, on the host."""
        data, references, size = quality.data, quality.references, min(self.batch_size, quality.total)
        world, rank, device = trainer.world_size, trainer.global_rank, pl_module.device
        references.extractor.to(device)
        shape = (data.channels, data.resolution, data.resolution)
        share = -(-quality.total // (size * world))
        features = torch.zeros(share, size, references.extractor.dims)
        pixels = torch.zeros(share, size, *shape, dtype=torch.uint8)
        for place, first in enumerate(range(rank * size, quality.total, world * size)):
            batch = range(first, min(first + size, quality.total))
            class_label = class_labels_for(batch, self.classes, device=device)
            drawn = draw_images(pl_module.denoiser, self.sampler, shape, self.seed, batch, class_label)
            grey = data.unscale(drawn)
            of_batch = references.features(grey)
            of_batch[~drawn.isfinite().flatten(1).all(dim=1).cpu()] = math.nan
            features[place, : len(batch)], pixels[place, : len(batch)] = of_batch, grey.cpu()
            advance(len(batch) * world)
        return self._gather(pl_module, features)[: quality.total], self._gather(pl_module, pixels)[: quality.total]

    def _gather(self, pl_module: LightningModule, mine: Tensor) -> Tensor:
        """Gather (share, size, ...) of each rank into (world · share · size, ...), batch after batch, on the host."""
        gathered: Tensor = pl_module.all_gather(mine.to(pl_module.device))  # type: ignore[assignment]
        return gathered.reshape(-1, *mine.shape).transpose(0, 1).flatten(0, 2).cpu()  # from (share, world, size, ...)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.seconds = state_dict["best"], state_dict["seconds"]
