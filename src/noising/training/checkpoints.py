"""Checkpoints: last.ckpt to go on from, best.ckpt to use. A crash at any moment leaves the last one whole."""

from __future__ import annotations

import logging
import math
import os
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from noising.errors import ConfigError
from noising.runs.folder import Run, replacing
from noising.training.safety.divergence import DivergenceError

log = logging.getLogger(__name__)

FORMAT = 1
"""Of what a checkpoint holds and where; those without a number are of the first."""

__all__ = [
    "FORMAT",
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "LastCheckpoint",
    "checkpoint_callbacks",
    "load_checkpoint",
]


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """What a checkpoint file holds, unpickling nothing but tensors and plain containers.

    Raises `ValueError` if there is no such file, if it is not a whole checkpoint with its checksums in order, or if a
    later version wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    if damage := _damage(path):
        raise ValueError(f"{path} {damage}: {_instead_of(path)}")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler raises whatever the damage makes it stumble over
        raise ValueError(
            f"{path} cannot be read as a checkpoint of weights and plain values: if there is code in it, it was not run"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of a run")
    if (version := content.get("noising_format", FORMAT)) != FORMAT:
        raise ValueError(
            f"{path} is of format {version}, this noising reads format {FORMAT}: use the one that wrote it"
        )
    return content


def _damage(path: Path) -> str:
    """What is wrong with a file, or nothing; every record has a checksum, which torch writes and never looks at."""
    try:
        if not zipfile.is_zipfile(path):  # the end of the file says so
            return "is not a checkpoint, or is truncated"
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()
    except Exception:  # a flipped bit may meet any field of zip's own
        return "is damaged"
    return f"is damaged, the checksum of {damaged} is wrong" if damaged is not None else ""


def _instead_of(path: Path) -> str:
    """What to take instead."""
    written = [other for form in ("last", "best*", "step_*") for other in sorted(path.parent.glob(f"{form}.ckpt"))]
    others = [other.name for other in written if other.name != path.name and not _damage(other)]
    if not others:
        return "there is no other beside it, so train anew"
    return f"take another of its folder ({', '.join(others)}); to go on from that, copy it to {path.name}"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin that writes beside the target, syncs, and renames.

    Lightning's own stages in the system's temporary folder: if that is another file system, a kill leaves an
    empty last.ckpt. A disk that is full leaves the checkpoint before in its place, and the training goes on.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        """Why the newest checkpoint is not on the disk; None if it is. Known to the rank that writes."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
            self.failure = None
        except (OSError, RuntimeError) as error:  # torch's zip writer turns the file's error into its own
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            if not isinstance(cause, OSError):
                raise
            self.failure = f"{path} cannot be written ({cause.strerror})"
            log.warning("%s; training goes on, and the next checkpoint is tried as ever", self.failure)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        # Lightning gives a function that keeps the storage on the device it came from: always the CPU here
        return load_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Writes `path` every `every` optimizer steps, at the end of the training and on an exception.

    Lightning's ModelCheckpoint does not write at the end if it has written before, and after a resume may
    write in the middle of an accumulation.
    """

    def __init__(
        self,
        path: str | Path,
        every: int,
        keep: int = 1,
        write: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """keep: so many of the newest are on the disk; those before the last as step_NNNNNN.ckpt beside it.

        write: is told at the end how many seconds the training has waited for checkpoints.
        """
        if every < 1:
            raise ValueError(f"every must be at least 1 (optimizer steps between checkpoints), got {every}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path = Path(path)
        self.every = every
        self.keep = keep
        self.write = write
        self._seconds = 0.0
        self._whole = True  # every hook of the newest step has run, its validation too; and the next changed no weight
        self._saved = 0  # the step that was written last, or that training started from
        self._on_disk = 0  # the step of the file, where the disk is not full the same

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = self._on_disk = trainer.global_step
        self._whole = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._whole = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # a validation that is due at this step comes first: a run resumed from the file would not repeat it
        due = trainer.enable_validation and (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        if not due:
            self._end_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._end_step(trainer)

    def _end_step(self, trainer: Trainer) -> None:
        self._whole = True
        if trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ConfigError on every rank if the trained weights cannot be written."""
        # even if this step was written: what is fitted to the trained weights has come since
        self.save(trainer, again=True)
        if self.write is not None and trainer.is_global_zero:
            self.write({"train/checkpoint_seconds": self._seconds})
        failure = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", None))
        if failure:
            raise ConfigError(f"{failure}: make room and go on with {Run(self.path.parent.parent).resuming}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # other ranks may have gone on or hang: only where no other must take part
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1:
            with suppress(DivergenceError):  # what is on the disk is from before
                self.save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Counts the batches of whole steps only: an exception amid an accumulation throws away its part."""
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        if "epoch_loop.state_dict" in loop:  # counted only once the step's hooks have ended
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step
        progress = loop.get("epoch_loop.batch_progress")
        if progress is not None:
            batches = trainer.global_step * trainer.accumulate_grad_batches
            for counts in (progress["total"], progress["current"]):
                counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), batches))

    def save(self, trainer: Trainer, again: bool = False) -> None:
        """Write it, if this step is whole and not on the disk, or again; all ranks take part."""
        same = trainer.global_step == self._saved
        if ((same or not self._whole) and not again) or _trial(trainer) or trainer.sanity_checking:
            return
        began = time.monotonic()
        for logger in trainer.loggers:
            logger.save()  # the metrics on the disk are never older than the checkpoint
        if trainer.is_global_zero and self.keep > 1 and not same:
            self._set_aside()
        trainer.save_checkpoint(self.path)
        self._saved = trainer.global_step
        if getattr(trainer.strategy.checkpoint_io, "failure", None) is None:
            self._on_disk = trainer.global_step
        self._seconds += time.monotonic() - began

    def _set_aside(self) -> None:
        """Give the file that is about to be replaced a second name, and remove the oldest of these."""
        if self.path.exists():
            name = self.path.with_name(f"step_{self._on_disk:06d}.ckpt")
            name.unlink(missing_ok=True)
            os.link(self.path, name)
        kept = sorted(self.path.parent.glob("step_*.ckpt"))
        for name in kept[: len(kept) - (self.keep - 1)]:
            name.unlink()


class BestCheckpoint(Checkpoint):
    """Writes `path` when a validation has brought the lowest `metric` so far.

    Unlike ModelCheckpoint's, its memory survives moving the run's folder.
    """

    def __init__(self, path: str | Path, metric: str = "val/bound") -> None:
        self.path = Path(path)
        self.metric = metric
        self.score = math.inf
        self.step: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or _trial(trainer):
            return
        value = trainer.callback_metrics.get(self.metric)
        # rank 0 decides: a metric that is not reduced may differ, and all must take part in saving
        score = float(trainer.strategy.broadcast(math.nan if value is None else float(value)))
        if score < self.score:
            self.score, self.step = score, trainer.global_step
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step = state_dict["score"], state_dict["step"]


def _trial(trainer: Trainer) -> bool:
    """Whether the run only tries out the code: fast_dev_run leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))


def checkpoint_callbacks(run: Run, every: int, keep: int = 1) -> tuple[BestCheckpoint, LastCheckpoint]:
    """best.ckpt by the validation bound, and last.ckpt every `every` optimizer steps."""
    return BestCheckpoint(run.best_checkpoint), LastCheckpoint(run.last_checkpoint, every, keep, run.write)
