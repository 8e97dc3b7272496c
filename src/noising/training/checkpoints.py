"""Checkpoints: last.ckpt to resume from, best.ckpt to use. A crash at any moment leaves a whole last.ckpt."""

import logging
import math
import os
import re
import shutil
import time
import warnings
import zipfile
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
from noising.runs.declarations import Declaration
from noising.runs.folder import replacing
from noising.runs.results import Results
from noising.runs.sizes import UnfoldingError, require_archive_size, require_written_out
from noising.training.checkpoint_content import require_kinds, with_plain_tensors
from noising.training.safety.divergence import DivergenceError

log = logging.getLogger(__name__)

FORMAT = 1
"""The version of a checkpoint's layout; a checkpoint without a number has the first."""


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file, unpickling nothing but tensors and plain containers.

    Raises `ValueError` if there is no such file, if it is truncated or damaged, if a later version wrote it, or if an
    entry of it is not of its kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    if damage := _damage(path):
        raise ValueError(f"{path} {damage}: {_alternatives(path)}")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of sparse tensors, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on a damaged file
        raise ValueError(
            f"{path} cannot be read as a checkpoint of weights and plain values: if there is code in it, it was not run"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of a run")
    version = content.get("noising_format", FORMAT)
    if isinstance(version, int) and version != FORMAT:
        raise ValueError(
            f"{path} has format {version}, but this noising reads format {FORMAT}: use the version that wrote it"
        )
    try:
        require_written_out(content)
        plain: dict[str, Any] = with_plain_tensors(content)
        require_kinds(plain)
    except ValueError as error:
        raise ValueError(f"{path} {error}: {_alternatives(path)}") from error
    return plain


def _damage(path: Path) -> str:
    """The damage of a file in words, or "". Every record has a checksum, which torch writes but does not read."""
    try:
        if not zipfile.is_zipfile(path):  # looks for the directory at the end
            return "is not a checkpoint, or is truncated"
        require_archive_size(path)
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()
    except UnfoldingError as error:
        return str(error)
    except Exception:  # a flipped bit may meet any field of zip's own
        return "is damaged"
    return f"is damaged, the checksum of {damaged} is wrong" if damaged is not None else ""


def _alternatives(path: Path) -> str:
    """Advice for a damaged checkpoint: the whole ones beside it."""
    written = [other for form in ("last", "best*") for other in sorted(path.parent.glob(f"{form}.ckpt"))]
    written += older_checkpoints(path.parent)
    if not (others := [other.name for other in written if other.name != path.name and not _damage(other)]):
        return "there is no other checkpoint beside it, so train again"
    return f"use another one from its folder ({', '.join(others)}); to go on from it, copy it to {path.name}"


def older_checkpoints(folder: Path) -> list[Path]:
    """The files step_NNNNNN.ckpt of a folder, by their step, which outgrows six digits."""
    numbered = [path for path in folder.glob("step_*.ckpt") if re.fullmatch(r"step_[0-9]+", path.stem)]
    return sorted(numbered, key=lambda path: int(path.stem.removeprefix("step_")))


class AtomicCheckpointIO(CheckpointIO):
    """A Lightning plugin that writes beside the target, syncs, and renames.

    Lightning's own writes into the system's temporary folder first: if that is another file system, a kill leaves an
    empty last.ckpt. If the disk is full, the previous checkpoint stays, and the training goes on.
    """

    failure: str | None = None
    """Why the newest checkpoint could not be written, on the rank that writes; None if it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
            self.failure = None
        except (OSError, RuntimeError) as error:  # torch's zip writer raises its own in the place of the file's
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            if not isinstance(cause, OSError):
                raise
            self.failure = f"{path} cannot be written ({cause.strerror})"
            log.warning("%s; training goes on, and the next checkpoint will be tried", self.failure)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        # map_location is a function of Lightning's that keeps each tensor where it is loaded: always the CPU here
        return load_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every so many optimizer steps, at the end of the training and on an exception.

    The summary gets the seconds that the training has waited for it. Lightning's ModelCheckpoint does not write at the
    end if it has written before, and after a resume it may write in the middle of an accumulation.
    """

    def __init__(self, results: Results, every: int, keep: int = 1) -> None:
        """every: optimizer steps between checkpoints; keep: how many stay, the older as step_NNNNNN.ckpt."""
        if every < 1:
            raise ValueError(f"every must be at least 1 (optimizer steps between checkpoints), got {every}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.results, self.path = results, results.run.last_checkpoint
        self.every, self.keep = every, keep
        self._seconds = 0.0
        self._whole = True  # all hooks of the newest step have run, and the next step has not changed a weight
        self._saved = 0  # the step that was last written or tried, or that training started from
        self._on_disk = 0  # the step of the file, an earlier one if the disk is full

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
        # again, if this step was written: the variance has been fitted to the trained weights since
        self.save(trainer, again=True)
        if trainer.is_global_zero:
            self.results.declare({"checkpoint_seconds": Declaration("time to write checkpoints", "s", shown=False)})
            self.results.write("train/checkpoint_seconds", self._seconds, trainer.global_step)
        if failure := trainer.strategy.broadcast(_failure(trainer)):
            raise ConfigError(f"{failure}: make room and go on with {self.results.run.resuming}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # other ranks may have gone on or hang, and all must take part in saving
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1:
            with suppress(DivergenceError):  # the checkpoint on the disk is from before
                self.save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the batches of whole steps only: an exception within an accumulation discards its part."""
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        if "epoch_loop.state_dict" in loop:  # Lightning counts it only after the step's hooks
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step
            progress = loop["epoch_loop.batch_progress"]
            batches = trainer.global_step * trainer.accumulate_grad_batches
            for counts in (progress["total"], progress["current"]):
                counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), batches))

    def save(self, trainer: Trainer, again: bool = False) -> None:
        """Write the checkpoint if the step is whole and not yet written, or if `again`; all ranks take part."""
        same = trainer.global_step == self._saved
        if ((same or not self._whole) and not again) or _leaves_no_files(trainer):
            return
        began = time.monotonic()
        for logger in trainer.loggers:
            logger.save()  # metrics on the disk are never older than the checkpoint
        if trainer.is_global_zero and self.keep > 1 and not same:
            try:
                self._keep_older()
            except OSError as error:
                log.warning("%s cannot be stored under its step (%s); training goes on", self.path, error.strerror)
        trainer.save_checkpoint(self.path)
        self._saved = trainer.global_step
        if _failure(trainer) is None:
            self._on_disk = trainer.global_step
        self._seconds += time.monotonic() - began

    def _keep_older(self) -> None:
        """Give the file that will be replaced a name of its own, and delete the oldest beyond `keep`."""
        if self.path.exists():
            name = self.path.with_name(f"step_{self._on_disk:06d}.ckpt")
            name.unlink(missing_ok=True)
            try:
                os.link(self.path, name)
            except OSError:  # a file system without hard links; or a full disk, and then the copy says so
                with open(self.path, "rb") as file, replacing(name) as copy:
                    shutil.copyfileobj(file, copy)
        for oldest in older_checkpoints(self.path.parent)[: 1 - self.keep]:
            oldest.unlink(missing_ok=True)


class BestCheckpoint(Checkpoint):
    """Writes `path` when a validation has given the lowest val/bound so far, the same on every rank.

    Unlike ModelCheckpoint, it remembers its score when the run's folder has been moved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.score = math.inf

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or _leaves_no_files(trainer):
            return
        score = float(trainer.callback_metrics.get("val/bound", math.nan))
        if score < self.score:
            before, self.score = self.score, score
            if not saved(trainer, self.path):
                self.score = before  # the next that is better than the file takes its place

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = float(state_dict["score"])


def _leaves_no_files(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run) or trainer.sanity_checking  # type: ignore[attr-defined]


def _failure(trainer: Trainer) -> str | None:
    return getattr(trainer.strategy.checkpoint_io, "failure", None)


def saved(trainer: Trainer, path: Path) -> bool:
    """Write a checkpoint; whether that was possible, on every rank."""
    trainer.save_checkpoint(path)
    return bool(trainer.strategy.broadcast(_failure(trainer) is None))


def checkpoint_callbacks(results: Results, every: int, keep: int = 1) -> tuple[BestCheckpoint, LastCheckpoint]:
    """best.ckpt by the validation bound, and last.ckpt every `every` optimizer steps."""
    return BestCheckpoint(results.run.best_checkpoint), LastCheckpoint(results, every, keep)
