"""The training order against its definition: permutations end to end, cut into steps and slices."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from noising.data.order import BatchSlice, StepOrder, evaluation_batches


def take(order: StepOrder, count: int) -> list[BatchSlice]:
    return list(itertools.islice(order, count))


def test_every_epoch_shows_each_image_once_even_where_batches_reach_over_its_end() -> None:
    stream = torch.cat([part.indices for part in take(StepOrder(13, 4, seed=0), 13)])  # 52 images: 4 epochs
    epochs = stream.view(4, 13)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(13).expand(4, 13))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed_alone() -> None:
    first, again, other = (torch.cat([p.indices for p in take(StepOrder(50, 10, seed), 5)]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_limited_order_goes_round_in_the_first_batches_of_the_whole_one() -> None:
    whole, limited = take(StepOrder(13, 4, seed=3), 2), take(StepOrder(13, 4, seed=3, batches=2), 5)
    assert [part.step for part in limited] == [0, 1, 2, 3, 4]
    for part in limited:
        assert torch.equal(part.indices, whole[part.step % 2].indices)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step", [0, 1, 3, 9])
def test_a_restart_at_a_step_gives_exactly_the_tail(step: int, accumulate: int) -> None:
    whole = take(StepOrder(13, 4, seed=3, accumulate=accumulate), 12 * accumulate)
    tail = take(StepOrder(13, 4, seed=3, accumulate=accumulate, start_step=lambda: step), (12 - step) * accumulate)
    for expected, found in zip(whole[step * accumulate :], tail, strict=True):
        assert (expected.step, expected.first) == (found.step, found.first)
        assert torch.equal(expected.indices, found.indices)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 4)])
def test_ranks_and_micro_batches_partition_the_batch_of_one_device(world: int, accumulate: int) -> None:
    one = take(StepOrder(31, 12, seed=5), 6)
    ranks = [
        take(StepOrder(31, 12, seed=5, accumulate=accumulate, rank=rank, world=world), 6 * accumulate)
        for rank in range(world)
    ]
    for whole in one:
        assembled = torch.full((12,), -1)
        filled = 0
        for part in itertools.chain(*ranks):
            if part.step == whole.step:
                assembled[part.first : part.first + len(part.indices)] = part.indices
                filled += len(part.indices)
        assert filled == 12
        assert torch.equal(assembled, whole.indices)


def test_a_batch_that_cannot_be_shared_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^data\.batch_size=10 must be a multiple of 4 \(2 devices x 2 acc"):
        StepOrder(100, 10, seed=0, accumulate=2, world=2)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("images", [1, 5, 17, 24])
def test_evaluation_sees_every_image_once_over_the_ranks(images: int, world: int) -> None:
    ranks: list[list[Tensor]] = [evaluation_batches(images, 6, rank, world) for rank in range(world)]
    seen = [int(i) for batches in ranks for batch in batches for i in batch]
    assert sorted(seen) == list(range(images))
    assert all(0 < len(batch) <= max(1, 6 // world) for batches in ranks for batch in batches)
    assert all(int(i) % world == rank for rank, batches in enumerate(ranks) for batch in batches for i in batch)
