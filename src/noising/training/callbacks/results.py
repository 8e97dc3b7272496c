"""The callback that writes a run's results: the bound with its card and baselines, its table, and figures."""

import logging
import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.trainer.states import TrainerFn

from noising.data.baselines import histogram_bits, uniform_bits
from noising.data.image_data import ImageData
from noising.errors import ConfigError
from noising.plots import likelihood
from noising.plots.curves import Panel, learning_curves
from noising.randomness import NOISE
from noising.runs.declarations import declaration, from_summary
from noising.runs.results import Results
from noising.training.checkpoints import FORMAT
from noising.training.ema import EMA
from noising.training.module import TRAINING, DiffusionModule
from noising.training.safety.divergence import DivergenceError
from noising.training.validation import bound_declarations

log = logging.getLogger(__name__)


def _made_with(trainer: Trainer) -> dict[str, Any]:
    """The circumstances, besides options, of a bitwise equal training: sums differ by ranks and threads."""
    return {
        "processes": trainer.world_size,
        "device": trainer.strategy.root_device.type,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "noise": NOISE,
    }


def _early_end(trainer: Trainer) -> str | None:
    """The step and the reason, where training ends before trainer.max_steps."""
    if trainer.global_step >= trainer.max_steps:
        return None
    reason = "a callback has set trainer.should_stop"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            reason = f"EarlyStopping: {callback.stopping_reason_message}"
        elif isinstance(callback, Timer) and (callback.time_remaining() or 0) < 0:
            reason = "the time limit (trainer.max_time) is reached"
    return f"at step {trainer.global_step} of {trainer.max_steps}: {reason}"


class ResultsCallback(Callback):
    """Writes summary.json, bound_by_step.csv, and the figures of the bound and of the training after the test."""

    def __init__(
        self,
        results: Results,
        data: ImageData,
        ema: EMA,
        config: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        """config: stored in checkpoints; source: the origin of the evaluated weights, if not this training."""
        self.results, self.data, self.ema = results, data, ema
        self.config, self.source = config, source
        self._start = 0  # the optimizer step that the training starts from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if trainer.is_global_zero:
            self.results.declare({**TRAINING, **bound_declarations(pl_module.test.decoder.unit)})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the resolved config, so that a checkpoint can be used alone, and the circumstances of the training."""
        checkpoint |= {"noising_format": FORMAT, "config": self.config}
        checkpoint |= {"made_with": _made_with(trainer), "data_sha256": self.data.digest}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn if the circumstances are others than before, so that the run will not be bitwise the same.

        Raises ConfigError if the images are others.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._start = checkpoint["global_step"]
        if checkpoint.get("data_sha256", self.data.digest) != self.data.digest:
            raise ConfigError(
                f"{self.data.place}: the images are not those that the run was started with: restore them, or start a "
                "new run without resume"
            )
        if not trainer.is_global_zero:
            return
        log.info("the run goes on from step %d", self._start)
        before, now = {"noise": "a generator a batch", **checkpoint.get("made_with", {})}, _made_with(trainer)
        changed = [f"{name} {before[name]} before, {now[name]} now" for name in before if before[name] != now.get(name)]
        if changed:
            words = "; ".join(changed)
            log.warning("the run goes on with %s: as good, but not bitwise equal to a run without a stop", words)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows that a resumed run will log again.

        Raises ConfigError on a rank that has read other images than the first.
        """
        if trainer.world_size > 1 and trainer.strategy.broadcast(self.data.digest) != self.data.digest:
            raise ConfigError(
                f"{self.data.place}: this rank has read other images than the first: give all ranks the same images"
            )
        if trainer.is_global_zero:
            self.results.resume_from(self._start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the throughput, the number of steps that were left out, and the reason of an early end."""
        assert isinstance(pl_module, DiffusionModule)
        if trainer.is_global_zero and (reason := _early_end(trainer)):
            self.results.run.update({"ended": reason})
        if trainer.is_global_zero and pl_module.skip_nonfinite_steps:
            self.results.write("train/skipped_steps", pl_module.skipped_steps, trainer.global_step)
        pl_module.throughput.stop()
        rate = pl_module.throughput.images_per_second
        if trainer.is_global_zero and not math.isnan(rate):
            self.results.write("train/images_per_second", rate, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the bound of the split, which the module has summed over ranks.

        Raises DivergenceError on every rank if it is not finite.
        """
        assert isinstance(pl_module, DiffusionModule)
        evaluation, data = pl_module.test, self.data
        split = evaluation.split
        numbers = {f"{split}/{name}": value for name, value in evaluation.estimate.numbers().items()}
        if not math.isfinite(numbers[f"{split}/bound"]):
            raise DivergenceError(
                f"the bound of the {split} images is not finite with the weights of step {pl_module.trained_steps}; "
                "train again with a lower optimizer.lr"
            )
        if not trainer.is_global_zero:
            return
        images = getattr(data, split).pixels
        numbers[f"{split}/uniform_baseline"] = uniform_bits(data.levels)
        numbers[f"{split}/histogram_baseline"] = histogram_bits(data.train.pixels, images, data.levels)
        card = {
            **evaluation.card(),
            **data.identity,
            "data_scaling": f"2 p/{data.levels - 1} - 1, p = 0..{data.levels - 1}",
            "grey_levels": data.levels,
            **({"images_left_out": data.skipped} if data.skipped else {}),
            "classes": pl_module.classes,
            # what it would cost to tell the class, which the bits are given
            "bits_of_the_class": math.log2(pl_module.classes) / images[0].numel() if pl_module.classes else 0.0,
            "weights": {"ema_decay": self.ema.decay, "ema_updates": self.ema.updates},
            "step": pl_module.trained_steps,
            **pl_module.origin,
            **(self.source or {}),
        }
        self.results.write_all(numbers, pl_module.trained_steps, {f"{split}/bound": card})
        curve = evaluation.estimate.curve()
        bins = likelihood.step_bins(curve, evaluation.chain, split, numbers[f"{split}/prior"])
        file = self.results.run.bound_by_step
        every = likelihood.with_others(file, bins)
        with self.results.run.writing(file):
            likelihood.write_bins(file, every)
        self._draw_bound(every, pl_module.trained_steps)
        if split == "test":
            self._plot_curves(numbers, pl_module.trained_steps)

    def _draw_bound(self, bins: list[likelihood.StepBin], step: int) -> None:
        """Draw the figures of every split evaluated so far, and give them to the loggers."""
        run, latest = self.results.run, self.results.latest()
        found = {split: latest.get(f"{split}/bound", math.nan) for split in dict.fromkeys(row.split for row in bins)}
        bounds = {split: bound for split, bound in found.items() if math.isfinite(bound)}
        title = f"{self.data.name}: " + ", ".join(f"{split} {bits:.3f}" for split, bits in bounds.items()) + " bits/dim"
        # log2(N)/D, the bound of the empirical distribution of N images (noising.oracles.empirical)
        memorized = math.log2(len(self.data.train.pixels)) / self.data.train.pixels[0].numel()
        for figure, draw in (
            (run.bound_by_step_figure, partial(likelihood.bound_by_step, memorized=memorized)),
            (run.bound_by_log_snr_figure, likelihood.bound_by_log_snr),
            (run.rate_distortion_figure, likelihood.rate_distortion),
        ):
            with run.writing(figure):
                draw(figure, bins, title)
            self.results.write_image(f"figures/{figure.stem}", figure, step, title)
        points = [((row.first_step + row.last_step) / 2, row.bits_per_dim_per_step, row.split) for row in bins]
        columns = ("step of the chain", "bits/dim per step", "split")
        self.results.write_chart("bound_by_step", columns, points, f"L_t, {title}", step)
        self.results.write_table("bound_by_step_bins", likelihood.StepBin._fields, [list(row) for row in bins], step)

    def _plot_curves(self, numbers: dict[str, float], step: int) -> None:
        rows, run = self.results.rows(), self.results.run
        if not any("train/loss" in row for row in rows):  # an evaluation alone has none, nor has fast_dev_run
            return
        uniform, histogram = numbers["test/uniform_baseline"], numbers["test/histogram_baseline"]
        baselines = {"uniform over the levels": uniform, "histogram of each pixel": histogram}
        summary = run.summary
        declared = from_summary(summary)
        measured = dict.fromkeys(
            name for row in rows for name in row if name.startswith("val/") and name != "val/bound"
        )
        panels = [
            Panel(name, declaration(name, declared), summary.get(f"test/{name.removeprefix('val/')}_baseline"))
            for name in measured
            if name.removeprefix("val/") in declared and declaration(name, declared).shown
        ]
        with run.writing(run.learning_curves):
            learning_curves(run.learning_curves, rows, baselines, panels)
        self.results.write_image(f"figures/{run.learning_curves.stem}", run.learning_curves, step, self.data.name)
