"""A training step's operations are counted, so that none comes unnoticed; the host never waits for a number."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from noising.data.image_data import ImageData
from noising.experiment import Experiment
from noising.training.ema import EMA
from tests.helpers import composed

VIEWS = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze"),
    *("t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
}
"""What moves no number."""


class Operations(TorchDispatchMode):
    """Counts torch's operations by name, views aside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return operation(*arguments, **(named or {}))


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ((), 450),  # the default network, of 0.2 million parameters
        (("model.width=32", "model.multipliers=[1,2,2,2]", "model.heads=4", "model.groups=8"), 630),  # 1.6 million
        (("augmentation=edm", "model._target_=noising.models.song_unet.SongUNet"), 750),
    ],
)
def test_a_step_is_few_operations_and_waits_for_none(options: tuple[str, ...], most: int, digits: ImageData) -> None:
    module = Experiment(composed("model.width=16", "model.heads=4", "model.groups=8", *options), digits).module
    optimizer, ema = module.configure_optimizers()["optimizer"], EMA(0.999)
    trainer = SimpleNamespace(
        global_step=0,
        global_rank=0,
        world_size=1,
        accumulate_grad_batches=1,
        optimizers=[optimizer],
        precision_plugin=SimpleNamespace(scaler=None),
    )
    module.trainer = trainer  # type: ignore[assignment]
    batch = {"image": digits.scale(digits.train.pixels[:16]), "index": torch.arange(16)}

    def step() -> None:
        loss = module.training_step(batch, trainer.global_step)
        loss.backward()  # type: ignore[no-untyped-call]
        module.configure_gradient_clipping(optimizer, 1.0, "norm")
        optimizer.step()
        module.optimizer_zero_grad(0, 0, optimizer)
        ema.update(module.denoiser)
        trainer.global_step += 1

    step()
    with Operations() as operations:
        step()
    assert operations.counts["_local_scalar_dense"] == 0  # a number read by the host: .item(), float(), if
    assert sum(operations.counts.values()) <= most
