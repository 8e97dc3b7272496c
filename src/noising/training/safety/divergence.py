"""A loss or gradient that is not finite: noticed where the host waits anyway, before anything of it is written.

A step must not wait for a number. So what each step saw is kept on the device and looked at when losses are logged and
before a checkpoint is assembled: the weights on the disk are always from before.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from noising.diffusion.schedules import Schedule
from noising.errors import UsageError

__all__ = ["DivergenceError", "NonFiniteGuard", "StepLog"]


log = logging.getLogger(__name__)


SPIKE = 5.0
"""Times the median of the steps since the last look, from which on a step's loss is a spike."""
MIN_STEPS = 10
"""Steps that a median needs."""


class DivergenceError(UsageError):
    """The training has left the finite numbers."""

    exit_code = 1


class StepLog(NamedTuple):
    """One micro-batch of this rank, as trained on at an optimizer step."""

    step: int
    t: Tensor  # (B,) float64, on the host
    image: Tensor  # (B,) int64, which of the training images
    loss: Tensor  # (B,), on the device


class NonFiniteGuard:
    """What was seen since the last look."""

    def __init__(self) -> None:
        self._seen: list[StepLog] = []
        self._norms: list[tuple[int, Tensor]] = []
        self._diverged: DivergenceError | None = None

    def note(self, seen: StepLog) -> None:
        """Keep what a micro-batch saw."""
        self._seen.append(seen)

    def note_gradient(self, step: int, norm: Tensor) -> None:
        """Keep the norm of the gradient of all of a step's micro-batches."""
        self._norms.append((step, norm.detach()))

    def forget(self, step: int) -> None:
        """A step that is left out has not been trained on."""
        self._seen = [one for one in self._seen if one.step != step]

    def look(self, module: LightningModule, schedule: Schedule) -> None:
        """Raise DivergenceError on every rank if a loss or gradient of one was not finite; log a spike of the loss.

        All ranks must call it at the same step. Weights that diverged stay so: it is raised from then on.
        """
        if self._diverged is not None:
            raise self._diverged
        seen, norms = self._seen, self._norms
        self._seen, self._norms = [], []
        losses = torch.stack([one.loss.detach().float().mean() for one in seen]).tolist() if seen else []
        gradients = torch.stack([norm.float() for _, norm in norms]).tolist() if norms else []
        bad = [one for one, loss in zip(seen, losses, strict=True) if not math.isfinite(loss)]
        bad_norms = [step for (step, _), norm in zip(norms, gradients, strict=True) if not math.isfinite(norm)]
        first = _first(bad, bad_norms, schedule)
        if module.trainer.world_size > 1:
            every: list[tuple[float, str]] = [first] * module.trainer.world_size
            torch.distributed.all_gather_object(every, first)
            first = min(every)
        if first[1]:
            self._diverged = DivergenceError(first[1])
            raise self._diverged
        _log_spike(seen, losses, schedule)


def _first(bad: list[StepLog], norms: list[int], schedule: Schedule) -> tuple[float, str]:
    """The first step that had something not finite, and what; or infinity."""
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


def _log_spike(seen: list[StepLog], losses: list[float], schedule: Schedule) -> None:
    if len(losses) < MIN_STEPS:
        return
    median = sorted(losses)[len(losses) // 2]
    highest = max(range(len(losses)), key=losses.__getitem__)
    if losses[highest] > SPIKE * median > 0:
        one = seen[highest]
        place = int(one.loss.argmax())
        log.warning(
            "loss spike at step %d: %.4g, %.1f times the median of the last %d; most of it at %s, training image %d",
            *(one.step, losses[highest], losses[highest] / median, len(losses)),
            *(_where(one.t[place], schedule), int(one.image[place])),
        )


def _where(t: Tensor, schedule: Schedule) -> str:
    level = schedule(t.cpu().double().reshape(1))
    return f"t = {float(t):.4g}, λ = {float(level.log_snr):.4g}"
