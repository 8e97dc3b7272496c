"""Mean losses by quartile of t: exact, over batches, ranks and checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from noising.data.image_data import ImageData
from noising.diffusion.likelihood.sums import gather_states
from noising.experiment import Experiment
from noising.training.losses import QuartileLosses
from noising.training.module import DiffusionModule
from tests.helpers import composed, on_two_ranks

T = torch.tensor([0.25, 0.250001, 0.5, 0.75, 0.9, 1.0], dtype=torch.float64)
LOSS = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def named(whole: float, *quartiles: float) -> dict[str, float]:
    return {"train/loss": whole, **{f"train/loss_q{i}": mean for i, mean in enumerate(quartiles, 1)}}


def test_means_by_quartile() -> None:
    losses = QuartileLosses()
    losses.update(T, LOSS)
    assert losses.compute() == named(63 / 6, 1.0, 3.0, 8.0, 24.0)
    losses.update(T[:1], torch.tensor([4.0]))
    assert losses.compute() == named(67 / 7, 2.5, 3.0, 8.0, 24.0)
    losses.reset()
    assert all(math.isnan(mean) for mean in losses.compute().values())


def test_losses_that_are_not_finite_are_left_out() -> None:
    losses = QuartileLosses()
    losses.update(T, torch.tensor([1.0, math.nan, 4.0, 8.0, math.inf, -math.inf]))
    losses.update(T[:4], torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert losses.compute() == pytest.approx(named(28 / 7, 1.0, 10 / 3, 8.0, math.nan), nan_ok=True)


def test_ranks_add_up_image_by_image() -> None:
    """Not as a mean of means: of one loss here and three there."""
    losses, other = QuartileLosses(), QuartileLosses()
    losses.update(T[:1], LOSS[:1])
    other.update(T[[0, 0, 5]], torch.tensor([5.0, 6.0, 7.0]))
    losses.merge_state(other)
    assert losses.compute() == pytest.approx(named(19 / 4, 4.0, math.nan, math.nan, 7.0), nan_ok=True)


def test_many_losses_are_summed_without_rounding() -> None:
    """In float32 the sum would stand still at 2^24."""
    losses = QuartileLosses()
    losses.sums.fill_(2.0**24)
    losses.update(T, torch.ones(6))
    assert losses.sums.tolist() == [[2.0**24 + n for n in (1, 2, 1, 2)]] * 2


def test_half_precision_losses_are_summed_in_float64() -> None:
    losses = QuartileLosses()
    for _ in range(300):
        losses.update(T[:1], torch.ones(1, dtype=torch.bfloat16))
    assert losses.sums[:, 0].tolist() == [300, 300]


def restored(data: ImageData, sums: Tensor, rank: int, ranks: int = 1) -> DiffusionModule:
    """The module of a rank as its training goes on from a checkpoint with these sums."""
    module = Experiment(composed(), data).module
    module.on_load_checkpoint({"global_step": 7, "times": module.times.state_dict(), "loss_sums": sums})
    trainer: Any = SimpleNamespace(
        lr_scheduler_configs=[SimpleNamespace(scheduler=module.configure_optimizers()["lr_scheduler"]["scheduler"])],
        global_rank=rank,
        global_step=7,
        world_size=ranks,
        accumulate_grad_batches=1,
        log_every_n_steps=100,
    )
    module.trainer = trainer
    module.all_gather = lambda sums: sums  # type: ignore[method-assign, assignment, return-value]
    module.on_train_start()
    return module


def saved(module: DiffusionModule) -> Tensor:
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    sums: Tensor = checkpoint["loss_sums"]
    return sums if len(sums) > 1 else sums[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkpoint_holds_the_sums_after_the_last_whole_step(digits: ImageData, dtype: torch.dtype) -> None:
    before = torch.tensor([[1.5, 2, 3, 4], [1, 2, 3, 4]], dtype=dtype)  # float32 of older checkpoints
    module = restored(digits, before, rank=0)
    assert torch.equal(saved(module), before.double())
    module.losses.update(T, LOSS)
    assert torch.equal(saved(module), before.double())  # within a step
    module.end_step(0)
    after = torch.tensor([[2.5, 8, 11, 52], [2, 4, 4, 6]], dtype=torch.float64)
    assert torch.equal(saved(module), after)
    module.losses.update(T, LOSS)
    assert torch.equal(saved(module), after)


@pytest.mark.parametrize("ranks", [2, 3])
def test_sums_of_other_ranks_go_on_with_the_first(digits: ImageData, ranks: int) -> None:
    """The first rank takes sums over all ranks, as in older checkpoints, and those of another number of ranks."""
    for sums in (torch.full((2, 4), 5.0), torch.full((5, 2, 4), 1.0)):
        modules = [restored(digits, sums, rank, ranks) for rank in range(ranks)]
        assert torch.equal(modules[0].losses.sums, torch.full((2, 4), 5.0, dtype=torch.float64))
        for module in modules[1:]:
            assert not module.losses.sums.any()
            assert not module._settled.any()  # or a checkpoint before the next step would have them twice


def test_each_rank_takes_back_its_own_sums(digits: ImageData) -> None:
    """Bit by bit: 2^53 + 1 + 1 is another number in the other order."""
    sums = torch.tensor([2.0**53, 1.0], dtype=torch.float64).reshape(2, 1, 1).expand(2, 2, 4)
    modules = [restored(digits, sums, rank, ranks=2) for rank in range(2)]
    for module in modules:
        module.losses.update(torch.linspace(0.1, 1, 4, dtype=torch.float64), torch.ones(4))
        module.end_step(0)
    assert [float(module.losses.sums[0, 0]) for module in modules] == [2.0**53, 2.0]
    assert torch.equal(modules[1]._settled, torch.full((2, 4), 2.0, dtype=torch.float64))


def _saved_on(rank: int) -> Tensor:
    module = Experiment(composed()).module
    module.losses.update(T, LOSS * (rank + 1))
    module._settled = module.losses.sums.clone()
    module.all_gather = lambda sums: torch.stack(gather_states(sums))  # type: ignore[method-assign, assignment]
    module.nonfinite_guard.check = lambda *parts: None  # type: ignore[method-assign]
    return saved(module)


def test_a_checkpoint_holds_the_sums_of_every_rank(tmp_path: Path) -> None:
    totals = torch.tensor([1.0, 6, 8, 48], dtype=torch.float64)
    for sums in on_two_ranks(_saved_on, tmp_path):
        assert torch.equal(sums[:, 0], torch.stack([totals, 2 * totals]))
        assert torch.equal(sums[:, 1], torch.tensor([[1, 2, 1, 2]] * 2, dtype=torch.float64))
