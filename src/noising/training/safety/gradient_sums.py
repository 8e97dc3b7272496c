"""Gradients that are summed over the ranks in the same order before and after a resume."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy


def sum_in_one_order(trainer: Trainer) -> None:
    """Keep DDP's buckets as they are made, so that a run on more than two ranks goes on bitwise.

    DDP fills its buckets anew after the first step of each process, in the order in which gradients came. The place in
    a bucket decides in which order the ranks' values are added, and the sum of three numbers depends on it. DDP leaves
    its buckets alone where it looks for unused parameters; it then warns, once, that there are none.
    """
    strategy: Any = trainer.strategy
    if isinstance(strategy, DDPStrategy) and trainer.world_size > 2:
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
