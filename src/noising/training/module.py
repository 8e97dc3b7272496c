"""The LightningModule: a denoiser, an objective, and the times at which it is trained.

Every draw of a training step is keyed by (seed, purpose, step, position in the global batch), and the validation and
test bounds have keys of their own. So nothing that happens between two steps can change the later one, and any number
of devices and accumulation steps give the same training to rounding.
"""

import logging
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from noising.data.augmentation import Augmentation
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.objectives import Objective
from noising.diffusion.times import BatchSlot, TimeSampler
from noising.randomness import Streams, drops_out, generator, may_draw, seed_global_generators
from noising.runs.declarations import Declaration
from noising.runs.results import Results
from noising.training.hooks import leave_out_unused
from noising.training.losses import LOSSES, QuartileLosses
from noising.training.optimizers import MakeOptimizer, MakeScheduler, ScheduledOptions
from noising.training.safety.divergence import DivergenceError, NonFiniteGuard, StepLog
from noising.training.throughput import Throughput
from noising.training.validation import BoundEvaluation

log = logging.getLogger(__name__)

TRAINING = {
    **LOSSES,
    "lr": Declaration("learning rate", shown=False),
    "images_per_second": Declaration("training throughput", "images/s"),
    "skipped_steps": Declaration("steps left out, since their gradients were not finite", shown=False),
}
"""Declarations of the numbers of training."""
MAX_SKIPPED = 20
"""Steps in a row that are left out before the training ends."""


class DiffusionModule(LightningModule):
    """Trains a denoiser; validates and tests it by the variational bound."""

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        times: TimeSampler,
        optimizer: MakeOptimizer,
        lr_schedule: MakeScheduler,
        validation: BoundEvaluation,
        test: BoundEvaluation,
        seed: int,
        classes: int = 0,
        label_dropout: float = 0.0,
        skip_nonfinite_steps: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        """optimizer: parameters -> Optimizer; lr_schedule: Optimizer -> scheduler of its rate, step by step.

        classes: number of classes, 0 for an unconditional network; label_dropout: probability that a training image's
        class is replaced by the extra class number `classes`. Ho & Salimans, "Classifier-Free Diffusion Guidance"
        (2022), algorithm 1. https://arxiv.org/abs/2207.12598

        skip_nonfinite_steps: leave out and count steps whose gradient is not finite, at the price of waiting for its
        norm at every step; otherwise such a step ends the training (DivergenceError).

        augmentation: of the training images; the network gets its labels beside the class.
        """
        super().__init__()
        self.denoiser, self.objective, self.times = denoiser, objective, times
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        self.validation, self.test = validation, test
        self.seed, self.classes, self.label_dropout = seed, classes, label_dropout
        self.skip_nonfinite_steps, self.augmentation = skip_nonfinite_steps, augmentation
        self.skipped_steps = self._skipped_in_a_row = 0
        self.nonfinite_guard = NonFiniteGuard()
        self.restored_step = 0
        self.init_from: dict[str, Any] | None = None
        """The card of the weights that the training began with, if they are another's."""
        self.results: Results | None = None
        """The destination of numbers; None in a Trainer without a run's folder, whose loggers get them."""
        self.throughput = Throughput()
        self._images = 0  # of a step, over all ranks
        self._first_rates: list[float] = []  # of the optimizer's groups, by the options
        self._observed: list[Tensor] = []  # times and losses of a step's micro-batches, for times that learn
        self.losses = QuartileLosses()  # since they were last logged
        # their state after the last optimizer step, for a checkpoint that is written within one
        self._settled, self._settled_times = self.losses.sums.clone(), times.state_dict()
        self._restored_sums = self._settled  # of a checkpoint: (ranks, 2, 4), or (2, 4) over all ranks

    @property
    def trained_steps(self) -> int:
        """Optimizer steps that made the weights; `global_step` is 0 where a checkpoint is only tested."""
        return max(self.global_step, self.restored_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.nonfinite_guard.check(self, self.denoiser.schedule)  # diverged weights are never written
        checkpoint["skipped_steps"] = self.skipped_steps
        if self.init_from is not None:
            checkpoint["init_from"] = self.init_from
        checkpoint["times"] = self._settled_times
        gathered: Tensor = self.all_gather(self._settled)  # type: ignore[assignment]
        checkpoint["loss_sums"] = gathered.reshape(-1, *self._settled.shape).cpu()  # of each rank

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restored_step = int(checkpoint["global_step"])
        self.skipped_steps = int(checkpoint.get("skipped_steps", 0))
        self.init_from = checkpoint.get("init_from")
        self.times.load_state_dict(checkpoint["times"])
        self._restored_sums, self._settled_times = checkpoint["loss_sums"], checkpoint["times"]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; past torch's search for parameters where Lightning notes each hook, 30 times a step."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        """The parameters that are trained: the walk over all modules is made once, not every step."""
        return [p for p in (*self.denoiser.parameters(), *self.objective.parameters()) if p.requires_grad]

    @cached_property
    def _seeds_global_generators(self) -> bool:
        """Whether a part of the network may draw from torch's global generators, as dropout does."""
        return any(may_draw(part) for part in self.denoiser.model.modules())

    def configure_optimizers(self) -> Any:
        """The optimizer over the denoiser's and the objective's parameters, its rate set anew every step."""
        optimizer = self.optimizer(self._trained)
        before = {name for group in optimizer.param_groups for name in group}
        scheduler = self.lr_schedule(optimizer)
        self._scheduled = ScheduledOptions(scheduler, optimizer, before)
        self._first_rates = [group["initial_lr"] for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip, and note or check the gradient's norm.

        Lightning refuses to clip for a fused optimizer under any autocast, though only a scaled loss (fp16) forbids it.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            # a scaled gradient that overflows is left out by the scaler, which lowers the scale
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            norm = nn.utils.clip_grad_norm_(self._trained, gradient_clip_val)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if not self.skip_nonfinite_steps:
            self.nonfinite_guard.note_gradient(self.global_step, norm)
        elif bool(norm.isfinite()):
            self._skipped_in_a_row = 0
        else:
            self._skip(optimizer)

    def _skip(self, optimizer: Optimizer) -> None:
        # an optimizer passes over parameters without a gradient, and keeps their averages
        optimizer.zero_grad(set_to_none=True)
        self.nonfinite_guard.forget(self.global_step)
        self.skipped_steps += 1
        log.warning("step %d is left out: its gradient is not finite; %d in all", self.global_step, self.skipped_steps)
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == MAX_SKIPPED:
            raise DivergenceError(
                f"diverged: the gradients of the {MAX_SKIPPED} steps up to {self.global_step} were not finite, and "
                "leaving out more will not repair the weights"
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Draw t and ε of a micro-batch by their keys, and return the loss."""
        x = batch["image"]
        rank, world, accumulate = self.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches
        step, micro = self.global_step, batch_idx % accumulate
        slot = BatchSlot(
            generator(self.seed, "times", step),
            start=(micro * world + rank) * len(x),
            size=len(x),
            total=len(x) * world * accumulate,
        )
        self._images = slot.total
        t, weight = self.times.sample(slot, self.denoiser.schedule)
        noise = Streams(self.seed, "noise", slot.positions, x.device, step).normal(x.shape[1:])
        if self._seeds_global_generators:
            seed_global_generators(self.seed, "dropout", step, micro, rank)
        condition = {"class_label": self._with_label_dropout(batch, step, slot)}
        if self.augmentation is not None:
            streams = Streams(self.seed, "augmentation", slot.positions, x.device, step)
            x, condition["augmentation"] = self.augmentation(x, streams)
        terms = self.objective(self.denoiser, x, t, noise, **condition)
        loss: Tensor = terms["loss"]
        if self.times.learns:
            self._observe(t, loss.detach(), last=micro == accumulate - 1)
        self.nonfinite_guard.note(StepLog(step, t, batch["index"], loss.detach()))
        self.losses.update(t, loss.detach())
        return (weight.to(loss, non_blocking=True) * loss).mean()

    def _observe(self, t: Tensor, loss: Tensor, last: bool) -> None:
        """Let the times learn from all ranks, so that all go on drawing from one distribution, and after the step."""
        gathered: Tensor = self.all_gather(torch.stack([t.to(loss), loss]))  # type: ignore[assignment]
        self._observed.append(gathered.reshape(-1, 2, len(t)).transpose(0, 1).flatten(1))  # (2, world · B)
        if last:
            observed = torch.cat(self._observed, 1)
            self._observed.clear()
            # a step may be left out for images whose loss is not finite
            self.times.observe(*(observed[:, observed[1].isfinite()] if self.skip_nonfinite_steps else observed))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drop the gradients, without the profiler's record that torch's own makes."""
        for parameter in self._trained:
            parameter.grad = None

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take the step, and count its images before any callback reads the throughput or pauses its clock."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.throughput.count(self._images)

    def class_label(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The classes of a batch, (B,) int64, or None for an unconditional network."""
        return batch["label"] if self.classes else None

    def _with_label_dropout(self, batch: dict[str, Tensor], step: int, slot: BatchSlot) -> Tensor | None:
        label = self.class_label(batch)
        if label is None or not self.label_dropout:
            return label
        drawn = slot.own(generator(self.seed, "label", step).random(slot.total) < self.label_dropout)
        return label.masked_fill(drawn.to(label.device, non_blocking=True), self.classes)

    def on_train_start(self) -> None:
        """Take the optimizer's options from the config, and the scheduler's: a checkpoint restores its own."""
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        groups = scheduler.optimizer.param_groups
        options: dict[str, Any] = getattr(self.optimizer, "keywords", {})  # the optimizer is a partial
        cycled = ("betas", "momentum") if getattr(scheduler, "cycle_momentum", False) else ()  # the scheduler's to set
        for group, rate in zip(groups, self._first_rates, strict=True):
            group.update({name: options[name] for name in options if name in group and name not in ("lr", *cycled)})
            if group["initial_lr"] != rate:
                group["lr"] *= rate / group["initial_lr"]
                group["initial_lr"] = rate
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        self._scheduled.restore(scheduler)
        if any(drops_out(part) for part in self.denoiser.model.modules()):
            log.info("the network's dropout depends on the number of devices and micro-batches")
        self.losses.reset()
        by_rank = self._restored_sums.reshape(-1, *self.losses.sums.shape)
        if len(by_rank) == self.trainer.world_size:
            self.losses.sums.copy_(by_rank[self.global_rank])  # in another order they would round to another mean
        elif self.global_rank == 0:
            self.losses.sums.copy_(by_rank.sum(0))
        self._settled = self.losses.sums.clone()

    def configure_callbacks(self) -> list[Callback]:
        end = _EndOfStep()
        leave_out_unused([end])
        return [end]

    def end_step(self, batch_idx: int) -> None:
        """Log the mean losses since the last log, learning rate and throughput, every log_every_n_steps."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.nonfinite_guard.check(self, self.denoiser.schedule)
            numbers = self.losses.compute()
            self.losses.reset()
            if self.skip_nonfinite_steps:
                numbers["train/skipped_steps"] = float(self.skipped_steps)
            numbers["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            if not math.isnan(rate := self.throughput.images_per_second):  # after the wait for the losses
                numbers["train/images_per_second"] = rate
            self.write(numbers)
            self.follow(numbers)
        self._settled, self._settled_times = self.losses.sums.clone(), self.times.state_dict()

    @property
    def origin(self) -> dict[str, Any]:
        """The origin of the weights besides the data, for cards: others' weights and augmented images, if any."""
        augmentation = None if self.augmentation is None else self.augmentation.card
        entries = {"init_from": self.init_from, "augmentation": augmentation}
        return {name: entry for name, entry in entries.items() if entry}

    def write(self, numbers: dict[str, float]) -> None:
        """Write numbers under the number of steps taken; `self.log` would be one behind."""
        if self.results is None:
            for logger in self.trainer.loggers:
                logger.log_metrics(numbers, step=self.trained_steps)
        elif self.trainer.is_global_zero:
            self.results.write_all(numbers, self.trained_steps)

    def follow(self, numbers: dict[str, float]) -> None:
        """Let callbacks that follow a number, such as EarlyStopping, find it: the same on every rank.

        `self.log` of a number takes a millisecond.
        """
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})

    @property
    def _evaluation(self) -> BoundEvaluation:
        return self.test if self.trainer.testing else self.validation

    def on_validation_epoch_start(self) -> None:
        """Plan the evaluation of the images in the batches of every rank."""
        evaluation, trainer = self._evaluation, self.trainer
        split, data = evaluation.split, trainer.datamodule  # type: ignore[attr-defined]
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        count = data.images_in(int(sum(batches)), len(getattr(data, split).pixels), trainer.world_size)

        def fetch(index: Tensor) -> tuple[Tensor, Tensor | None]:
            x, class_label = data.batch(split, index, self.device)
            return x, class_label if self.classes else None

        evaluation.begin(self.denoiser, count, fetch, trainer.strategy.broadcast)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the bound of the evaluated split."""
        self._evaluation.update(batch["image"], batch["index"], self.class_label(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the bound from sums over ranks, not means of means: every image counts the same on any rank."""
        split, estimate = self._evaluation.split, self._evaluation.compute(self.device)
        numbers = {f"{split}/{name}": value for name, value in estimate.numbers().items()}
        if not self.trainer.testing:  # a test's numbers are written with their card
            self.write({name: value for name, value in numbers.items() if not math.isnan(value)})
        # for callbacks that follow a number, the same on every rank
        self.log(f"{split}/bound", torch.tensor(numbers[f"{split}/bound"]), logger=False, sync_dist=True)

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step
    on_test_epoch_end = on_validation_epoch_end


class _EndOfStep(Callback):
    """Ends the module's step before a checkpoint is written; the module's own hook would come after."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.end_step(batch_idx)  # type: ignore[operator]
