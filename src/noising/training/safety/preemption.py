"""Preemption: on SIGTERM or SIGUSR1 the training saves after the step and exits with the signal's code.

Lightning's own handling exits with code 0, as if the run had finished; with several ranks it waits inside the handler.
"""

import logging
import os
import shutil
import signal
import subprocess
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from noising.runs.status import Preempted
from noising.training.checkpoints import LastCheckpoint

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption(Checkpoint):
    """On SIGTERM or SIGUSR1: finish the step, write last.ckpt, and raise Preempted.

    Several ranks agree on the step to stop at when losses are logged, since no other step waits for the device. During
    validation and test, and when a validation is due, the signal ends the run at once, and resume goes on from the last
    checkpoint. Under Slurm SIGUSR1 (`#SBATCH --signal=USR1@90`) also requeues the job. A Checkpoint, because Lightning
    calls these last.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self._received = 0
        self._training = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if not self._training:
            raise Preempted(number)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has just set; at the stage's end it restores those from before."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_test_start(trainer, pl_module)
        if trainer.received_sigterm:  # while Lightning still listened
            raise Preempted(signal.SIGTERM)
        self._training = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    on_train_end = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if number := self._agreed(trainer, batch_idx):
            self.last.save(trainer)
            if trainer.is_global_zero and number == signal.SIGUSR1:
                _requeue()
            raise Preempted(number)

    def _agreed(self, trainer: Trainer, batch_idx: int) -> int:
        """The signal that a rank has received, at a step where all ranks agree to stop; otherwise 0."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return 0
        if trainer.world_size == 1:
            return self._received
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return 0
        received = torch.tensor([float(self._received)], device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))  # type: ignore[arg-type]


def _requeue() -> None:
    """Ask Slurm, if it runs the job, to run it again, as Lightning would."""
    job, command = os.environ.get("SLURM_JOB_ID"), shutil.which("scontrol")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if job is not None and command is not None:
        done = subprocess.run([command, "requeue", f"{array}_{task}" if array and task else job], check=False)
        log.warning("Slurm was asked to run job %s again: %s", job, "yes" if done.returncode == 0 else "it refused")
