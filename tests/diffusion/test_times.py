"""Times are drawn once for the global batch, and each rank and micro-batch takes its slice."""

from __future__ import annotations

import pytest
import torch

from noising.diffusion.schedules import Cosine
from noising.diffusion.times import Draw, Grid, LowDiscrepancy, TimeSampler, Uniform
from noising.randomness import generator
from tests.diffusion.conftest import final_classes

SAMPLERS: list[TimeSampler] = [Grid(1000), Uniform(), LowDiscrepancy()]
SCHEDULE = Cosine(1000)


def draw(step: int, start: int, size: int, total: int) -> Draw:
    return Draw(generator(0, "times", step), start, size, total)


def test_every_final_class_is_tested() -> None:
    assert final_classes(TimeSampler) == {type(sampler) for sampler in SAMPLERS}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_slices_of_ranks_make_up_the_whole(sampler: TimeSampler) -> None:
    whole, weight = sampler.sample(draw(3, 0, 24, 24), SCHEDULE)
    parts = [sampler.sample(draw(3, start, 8, 24), SCHEDULE)[0] for start in (0, 8, 16)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(weight, torch.ones(24, dtype=torch.float64))
    assert not torch.equal(sampler.sample(draw(4, 0, 24, 24), SCHEDULE)[0], whole)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_times_are_uniform_in_the_half_open_interval(sampler: TimeSampler) -> None:
    """Chi-square over ten bins of 200,000 independent draws (one of each batch): 99.99% of the time below 33.7."""
    t = torch.cat([sampler.sample(draw(step, 0, 100, 100), SCHEDULE)[0] for step in range(2000)])
    assert t.min().item() > 0
    assert t.max().item() <= 1
    counts = torch.histc((t - 5e-4).float(), 10, 0, 1)
    assert ((counts - 20_000) ** 2 / 20_000).sum().item() < 33.7


def test_grid_lies_on_the_chain() -> None:
    t, _ = Grid(10).sample(draw(0, 0, 500, 500), SCHEDULE)
    assert set((t * 10).tolist()) == set(range(1, 11))


def test_low_discrepancy_puts_one_time_into_each_stratum() -> None:
    for step in range(50):
        t, _ = LowDiscrepancy().sample(draw(step, 0, 64, 64), SCHEDULE)
        assert sorted(((t * 64).ceil() - 1).long().tolist()) == list(range(64))
        assert t.sort().values.diff().std().item() < 1e-12
        assert not torch.equal(t, t.sort().values)
