"""The hooks of a training step: Lightning calls only those that a callback has."""

from collections.abc import Iterable

from lightning.pytorch import Callback

OF_A_STEP = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
"""Hooks that Lightning calls on every callback in every step."""


def leave_out_unused(callbacks: Iterable[Callback]) -> None:
    """Set to None what a callback inherits as it is from Lightning's own, which does nothing.

    Lightning passes over what is not callable. An empty hook costs 7 µs, of ten callbacks half a millisecond a step.
    """
    for callback in callbacks:
        for name in OF_A_STEP:
            if getattr(getattr(callback, name), "__func__", None) is getattr(Callback, name):
                vars(callback)[name] = None
