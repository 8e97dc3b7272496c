"""Sums over batches and ranks as the states of a torchmetrics.Metric, gathered by one collective each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def gather_states(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather a state of one shape from every rank by one collective; torchmetrics' own asks for the shapes first."""
    states = [torch.empty_like(state) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(states, state, group)
    return states


class SumsOverRanks(Metric):
    """A metric whose states are float64 sums, whatever the precision of the module around it; float32 on MPS."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_states)

    def add_sums(self, name: str, *shape: int) -> None:
        """Declare a state of zeros."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """Always true: sums of nothing are zeros, the share of a rank without images, and need no warning."""
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        # `.to(dtype)`, as by trainer.precision=bf16-true, converts states too; only their device may change
        device = fn(torch.empty(())).device

        def move(state: Tensor) -> Tensor:
            return (state.float() if device.type == "mps" else state).to(device)  # MPS has no float64

        return super()._apply(move, exclude_state)
