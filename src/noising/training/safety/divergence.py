"""Losses and gradients that are not finite: noticed before weights that came of them are written.

A step must not wait for a number. So losses and norms stay on the device, and are checked when losses are logged and
before a checkpoint is assembled, where the host waits anyway.
"""

import logging
import math
from statistics import median_high
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from noising.diffusion.schedules import Schedule
from noising.errors import UsageError

log = logging.getLogger(__name__)

SPIKE = 5.0
"""A step's loss is a spike if it is more than this many times the median since the last check."""
MIN_STEPS = 10
"""Steps that the median needs."""


class DivergenceError(UsageError):
    """The training has left the finite numbers."""

    exit_code = 1


class StepLog(NamedTuple):
    """One micro-batch of this rank at an optimizer step."""

    step: int
    t: Tensor  # (B,) float64, on the host
    image: Tensor  # (B,) int64, indices of training images
    loss: Tensor  # (B,), on the device


class NonFiniteGuard:
    """The losses and gradient norms since the last check."""

    def __init__(self) -> None:
        self._logs: list[StepLog] = []
        self._norms: list[tuple[int, Tensor]] = []
        self._diverged: DivergenceError | None = None

    def note(self, micro_batch: StepLog) -> None:
        self._logs.append(micro_batch)

    def note_gradient(self, step: int, norm: Tensor) -> None:
        self._norms.append((step, norm.detach()))

    def forget(self, step: int) -> None:
        """Drop a step that is left out of the training."""
        self._logs = [one for one in self._logs if one.step != step]

    def check(self, module: LightningModule, schedule: Schedule) -> None:
        """Raise DivergenceError on every rank if a loss or gradient of any was not finite; log a spike of the loss.

        All ranks must call it at the same step. It raises at every call from then on, since the weights are lost.
        """
        if self._diverged is not None:
            raise self._diverged
        logs, norms = self._logs, self._norms
        self._logs, self._norms = [], []
        losses = torch.stack([one.loss.float().mean() for one in logs]).tolist() if logs else []
        gradients = torch.stack([norm.float() for _, norm in norms]).tolist() if norms else []
        bad = [one for one, loss in zip(logs, losses, strict=True) if not math.isfinite(loss)]
        bad_norms = [step for (step, _), norm in zip(norms, gradients, strict=True) if not math.isfinite(norm)]
        first = _first(bad, bad_norms, schedule)
        if module.trainer.world_size > 1:
            every: list[tuple[float, str]] = [first] * module.trainer.world_size
            torch.distributed.all_gather_object(every, first)
            first = min(every)
        if first[1]:
            self._diverged = DivergenceError(first[1])
            raise self._diverged
        if len(logs) >= MIN_STEPS:
            _log_spike(logs, losses, schedule)


def _first(bad: list[StepLog], norms: list[int], schedule: Schedule) -> tuple[float, str]:
    """The first step with a loss or gradient that is not finite, and the message; infinity if there is none."""
    if bad and (not norms or bad[0].step <= norms[0]):
        one = bad[0]
        which = (~one.loss.isfinite()).nonzero().flatten().cpu()
        place = int(which[0])
        more = f" (and of {len(which) - 1} more)" if len(which) > 1 else ""
        return one.step, (
            f"diverged at step {one.step}: the loss of training image {int(one.image[place])}{more} is "
            f"{float(one.loss[place])} at {_where(one.t[place], schedule)}"
        )
    if norms:
        return norms[0], f"diverged at step {norms[0]}: the gradient is not finite"
    return math.inf, ""


def _log_spike(logs: list[StepLog], losses: list[float], schedule: Schedule) -> None:
    median, highest = median_high(losses), max(losses)
    if highest > SPIKE * median > 0:
        one = logs[losses.index(highest)]
        place = int(one.loss.argmax())
        log.warning(
            "loss spike at step %d: %.4g, %.1f times the median of the last %d; most of it at %s, training image %d",
            *(one.step, highest, highest / median, len(losses)),
            *(_where(one.t[place], schedule), int(one.image[place])),
        )


def _where(t: Tensor, schedule: Schedule) -> str:
    level = schedule(t.cpu().double().reshape(1))
    return f"t = {float(t):.4g}, λ = {float(level.log_snr):.4g}"
