"""The callback that writes a run's results down: the bound with its card and baselines, its plot, its table."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from noising.data.baselines import histogram_bits, uniform_bits
from noising.data.image_data import ImageData
from noising.training.ema import EMA
from noising.training.figures import bound_by_step, learning_curves
from noising.training.loggers import CSVMetrics, log_image
from noising.training.module import DiffusionModule
from noising.training.run import Run, replacing

__all__ = ["Record"]


class Record(Callback):
    """After the test: summary.json, bound_by_step.csv, and the figures of the bound and of the training."""

    def __init__(
        self,
        run: Run,
        data: ImageData,
        ema: EMA,
        config: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        """config: stored in checkpoints; source: where the evaluated weights come from, if not from this training."""
        self.run, self.data, self.ema = run, data, ema
        self.config, self.source = config, source

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The resolved config, so that a checkpoint alone is enough to go on with."""
        checkpoint["config"] = self.config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run drops the rows of metrics.csv that it will write again."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVMetrics):
                logger.resume_from(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the progress bar measured."""
        rate = getattr(trainer.progress_bar_callback, "images_per_second", float("nan"))
        if trainer.is_global_zero and rate == rate:
            self.run.record({"train/images_per_second": rate})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the bound down, once the module has summed it over ranks."""
        assert isinstance(pl_module, DiffusionModule)
        if not trainer.is_global_zero:
            return
        evaluation = pl_module.test
        numbers = {f"test/{name}": value for name, value in evaluation.meter.compute().items()}
        numbers["test/uniform_baseline"] = uniform_bits(self.data.levels)
        numbers["test/histogram_baseline"] = histogram_bits(
            self.data.train.pixels, self.data.test.pixels, self.data.levels
        )
        card = {
            **evaluation.card(),
            "data": self.data.name,
            "grey_levels": self.data.levels,
            "weights": {"ema_decay": self.ema.decay, "ema_updates": self.ema.updates},
            "step": pl_module.trained_steps,
            **(self.source or {}),
        }
        self.run.record(numbers, {"test/bound": card})
        edges, bits = evaluation.meter.by_step()
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["first_step", "last_step", "bits_per_dim_per_step"])
        table.writerows(zip(edges[:-1].tolist(), (edges[1:] - 1).tolist(), bits.tolist(), strict=True))
        with replacing(self.run.bound_by_step) as file:
            file.write(text.getvalue().encode())
        self._plot_curves(trainer, numbers)
        title = f"Bound on {self.data.name}, test: {numbers['test/bound']:.3f} bits/dim"
        # log2(N)/D, the bound of the empirical distribution of N images (noising.oracles.empirical)
        memorized = math.log2(len(self.data.train.pixels)) / self.data.train.pixels[0].numel()
        bound_by_step(self.run.bound_by_step_figure, edges, bits, title, memorized)
        log_image(trainer.loggers, "bound_by_step", self.run.bound_by_step_figure, pl_module.trained_steps)

    def _plot_curves(self, trainer: Trainer, numbers: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.save()
        if not self.run.metrics.exists():  # fast_dev_run logs nothing
            return
        with open(self.run.metrics, newline="") as file:
            rows = list(csv.DictReader(file))
        if any(row.get("train/loss") for row in rows):  # an evaluation alone has none
            names = {"uniform over the levels": "uniform", "histogram of each pixel": "histogram"}
            baselines = {name: numbers[f"test/{key}_baseline"] for name, key in names.items()}
            learning_curves(self.run.learning_curves, rows, baselines)
