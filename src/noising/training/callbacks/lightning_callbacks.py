"""Callbacks of Lightning's own: those that a run cannot have, and those that follow a number nobody logs."""

from collections.abc import Mapping

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

from noising.config.instantiate import nearest
from noising.errors import ConfigError
from noising.training.callbacks.quality import QualityCheck
from noising.training.module import TRAINING

INSTEAD: dict[type[Callback], str] = {
    LearningRateFinder: "the learning rate is an option to sweep over: -m optimizer.lr=1e-3,2e-3,4e-3",
    BatchSizeFinder: "set data.batch_size, and split it by trainer.accumulate_grad_batches",
    GradientAccumulationScheduler: "the number of accumulation steps is fixed: set trainer.accumulate_grad_batches",
    StochasticWeightAveraging: "the weights are already averaged: set ema.decay",
    WeightAveraging: "the weights are already averaged: set ema.decay",
    BackboneFinetuning: "the network is trained as a whole",
}
"""Callbacks that would train, or change, what the run itself decides, and what to use instead."""


def require_usable(callbacks: Mapping[str, object]) -> None:
    """Raise ConfigError for a callback that a run cannot have, and one that follows a number it will not find.

    A callback that is neither Lightning's nor ours may log numbers of its own: then any may be followed.
    """
    known = {"val/bound", *(f"train/{name}" for name in TRAINING)}
    for callback in callbacks.values():
        if isinstance(callback, QualityCheck) and callback.checked is not None:
            known |= {f"val/{name}" for name in callback.checked.declared}
    own = any(not type(one).__module__.startswith(("lightning.", "noising.")) for one in callbacks.values() if one)
    for name, callback in callbacks.items():
        for kind, instead in INSTEAD.items():
            if isinstance(callback, kind):
                raise ConfigError(f"callbacks.{name}: a run cannot use {kind.__name__}; {instead}")
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor is None or own:
            continue
        if callback.monitor not in known:
            right = nearest(callback.monitor, known)
            hint = f"did you mean {right}?" if right else f"there are {', '.join(sorted(known))}"
            raise ConfigError(f"callbacks.{name}: monitor={callback.monitor}: no such number is logged; {hint}")
