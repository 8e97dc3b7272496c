"""Times are drawn once for the global batch, and each rank and micro-batch takes its slice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kstest, norm

from noising.diffusion.schedules import Cosine, LinearLogSNR, LogLinearSigma, RectifiedFlow, Schedule
from noising.diffusion.times import (
    BatchSlot,
    Grid,
    LogitNormal,
    LogNormal,
    LossAware,
    LowDiscrepancy,
    TimeSampler,
    Uniform,
)
from noising.randomness import generator
from tests.diffusion.helpers import final_classes

UNIFORM: list[TimeSampler] = [Grid(1000), Uniform(), LowDiscrepancy(), LossAware(1000)]
SKEWED: list[TimeSampler] = [LogNormal(), LogitNormal(0.3, 0.8)]
SAMPLERS = UNIFORM + SKEWED
SCHEDULE = Cosine(1000)


def draw(step: int, start: int, size: int, total: int) -> BatchSlot:
    return BatchSlot(generator(0, "times", step), start, size, total)


def test_every_final_class_is_tested() -> None:
    assert final_classes(TimeSampler) == {type(sampler) for sampler in SAMPLERS}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_slices_of_ranks_make_up_the_whole(sampler: TimeSampler) -> None:
    whole, weight = sampler.sample(draw(3, 0, 24, 24), SCHEDULE)
    parts = [sampler.sample(draw(3, start, 8, 24), SCHEDULE)[0] for start in (0, 8, 16)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(weight, torch.ones(24, dtype=torch.float64))
    assert not torch.equal(sampler.sample(draw(4, 0, 24, 24), SCHEDULE)[0], whole)


@pytest.mark.parametrize("sampler", UNIFORM, ids=lambda s: type(s).__name__)
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


def test_low_discrepancy_shifts_every_batch_by_chance() -> None:
    """The place within its stratum is uniform over batches, so that each time is: Kolmogorov and Smirnov's test."""
    batches = [LowDiscrepancy().sample(draw(step, 0, 8, 8), SCHEDULE)[0] for step in range(1000)]
    places = [float(t[0] * 8) % 1 for t in batches]
    assert kstest(places, "uniform").pvalue > 1e-3
    shares = torch.stack(batches).flatten()
    assert kstest(shares[::8].numpy(), "uniform").pvalue > 1e-3


def test_log_normal_draws_log_sigma_from_a_normal_cut_at_the_ends() -> None:
    for schedule in (LogLinearSigma(), LinearLogSNR(3, -5)):
        t, weight = LogNormal(-1.2, 1.2).sample(draw(0, 0, 20_000, 20_000), schedule)
        ends = -schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)) / 2
        low, high = norm.cdf(ends.numpy(), -1.2, 1.2)
        log_sigma = (-schedule.log_snr(t) / 2).numpy()
        assert kstest(log_sigma, lambda v, a=low, b=high: (norm.cdf(v, -1.2, 1.2) - a) / (b - a)).pvalue > 1e-3
        assert bool((weight == 1).all())


def test_logit_normal_draws_the_logit_from_a_normal() -> None:
    t, _ = LogitNormal(0.3, 0.8).sample(draw(0, 0, 20_000, 20_000), SCHEDULE)
    assert kstest(torch.logit(t).numpy(), norm(0.3, 0.8).cdf).pvalue > 1e-3


@pytest.mark.parametrize("schedule", [Cosine(1000), LogLinearSigma(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", SKEWED, ids=lambda s: type(s).__name__)
def test_density_is_that_of_the_draws(sampler: TimeSampler, schedule: Schedule) -> None:
    t, _ = sampler.sample(draw(0, 0, 100_000, 100_000), schedule)
    middles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    mass = sampler.density(middles, schedule).reshape(20, -1).sum(1) / 200_000
    assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
    counts = torch.histc(t.float(), 20, 0, 1).double()
    error = (mass * (1 - mass) / 100_000).sqrt()
    assert bool(((counts / 100_000 - mass).abs() < 4.5 * error + 1e-4).all())


def test_a_truncated_density_has_its_mass_between_the_ends() -> None:
    """Where half of the normal distribution lies beyond a schedule's ends, the density is that of the other half."""
    schedule, sampler = LinearLogSNR(3.0, -1.0), LogNormal(-1.2, 1.2)
    middles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert float(sampler.density(middles, schedule).mean()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sampler", SKEWED, ids=lambda s: type(s).__name__)
def test_density_is_zero_at_infinite_levels(sampler: TimeSampler) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert sampler.density(ends, RectifiedFlow()).tolist() == [0, 0]


def test_loss_aware_waits_for_every_step_and_then_follows_the_second_moment() -> None:
    times, losses = LossAware(5, history=3), np.arange(1.0, 16).reshape(5, 3)
    for step in range(5):
        assert times.probabilities == pytest.approx([0.2] * 5)
        times.observe(torch.full((3,), (step + 1) / 5, dtype=torch.float64), torch.from_numpy(losses[step]))
    times.observe(torch.tensor([0.4]), torch.tensor([20.0]))  # the oldest of step 2 is forgotten
    losses[1] = [20, 5, 6]
    size = np.sqrt((losses**2).mean(1))
    expected = 0.999 * size / size.sum() + 0.001 / 5
    assert times.probabilities == pytest.approx(expected)
    t, weight = times.sample(draw(0, 0, 50_000, 50_000), SCHEDULE)
    steps = (5 * t).round().long() - 1
    assert np.bincount(steps.numpy()) / 50_000 == pytest.approx(expected, abs=0.01)
    # weighted averages are those over uniform steps
    value = t**2
    error = float((weight * value).std()) / 50_000**0.5
    assert float((weight * value).mean()) == pytest.approx(np.mean((np.arange(1, 6) / 5) ** 2), abs=4 * error)


def test_loss_aware_goes_on_from_its_state() -> None:
    times, again = LossAware(4, history=2), LossAware(4, history=2)
    for seed in range(6):
        times.observe(
            torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.rand(4, generator=torch.Generator().manual_seed(seed))
        )
    again.load_state_dict(times.state_dict())
    for _ in range(2):
        one, two = (sampler.sample(draw(9, 0, 64, 64), SCHEDULE) for sampler in (times, again))
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
        for sampler in (times, again):
            sampler.observe(torch.tensor([0.25]), torch.tensor([7.0]))
    with pytest.raises(ValueError, match="loss history has shape"):
        LossAware(4, history=3).load_state_dict(times.state_dict())


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="std must be positive"):
        LogNormal(std=0)
    with pytest.raises(ValueError, match="history must be at least 1"):
        LossAware(4, history=0)
    with pytest.raises(ValueError, match="uniform_share must be in"):
        LossAware(4, uniform_share=0)


# Times that follow the loss


STEPS, HISTORY = 6, 4


def see(times: LossAware, losses: NDArray[np.float64]) -> None:
    """One loss of each step 1..T: (T,)."""
    t = torch.arange(1, len(losses) + 1, dtype=torch.float64) / len(losses)
    times.observe(t, torch.from_numpy(losses))


def formula(newest: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Nichol & Dhariwal, equation 18, mixed with the uniform: newest (T, history)."""
    size = np.sqrt((newest**2).mean(1))
    return np.asarray((1 - share) * size / size.sum() + share / len(size))


LOSSES = np.random.default_rng(0).lognormal(0, 1.5, (11, STEPS))


def full(share: float = 0.05) -> LossAware:
    times = LossAware(STEPS, HISTORY, share)
    for losses in LOSSES:
        see(times, losses)
    return times


def test_only_the_newest_losses_count() -> None:
    """Eleven seen, four kept; exactly the formula on those, to 1e-14."""
    np.testing.assert_allclose(full().probabilities, formula(LOSSES[-HISTORY:].T, 0.05), rtol=1e-14)


def test_uniform_while_one_step_lacks_one_loss() -> None:
    times = LossAware(STEPS, HISTORY, 0.05)
    for losses in LOSSES[: HISTORY - 1]:
        see(times, losses)
    for _ in range(9):  # all but the last step are seen more than enough
        times.observe(torch.arange(1, STEPS) / STEPS, torch.full((STEPS - 1,), 3.0))
    assert times.probabilities.tolist() == [1 / STEPS] * STEPS
    t, weight = times.sample(draw(0, 0, 60, 60), SCHEDULE)
    assert weight.tolist() == pytest.approx([1.0] * 60, rel=1e-15)
    assert set((t * STEPS).round().long().tolist()) == set(range(1, STEPS + 1))
    times.observe(torch.tensor([1.0]), torch.tensor([3.0]))
    assert times.probabilities[-1] != 1 / STEPS


def test_one_batch_may_hold_a_step_twice_in_any_order() -> None:
    """float32 times of a long chain find their step, and every loss of a step counts."""
    together, apart = LossAware(4000, 2, 0.05), LossAware(4000, 2, 0.05)
    steps = np.random.default_rng(1).permutation(np.repeat(np.arange(1, 4001), 2))
    losses = np.random.default_rng(2).lognormal(size=8000)
    together.observe(torch.from_numpy(steps / 4000).float(), torch.from_numpy(losses))
    for part in (slice(0, 3000), slice(3000, 8000)):
        apart.observe(torch.from_numpy(steps[part] / 4000), torch.from_numpy(losses[part]))
    expected = formula(np.stack([losses[steps == step] for step in range(1, 4001)]), 0.05)
    np.testing.assert_allclose(together.probabilities, expected, rtol=1e-13)
    np.testing.assert_allclose(apart.probabilities, expected, rtol=1e-13)


def test_slices_of_ranks_make_up_times_and_weights() -> None:
    times = full()
    whole = times.sample(draw(3, 0, 24, 24), SCHEDULE)
    parts = [times.sample(draw(3, start, 8, 24), SCHEDULE) for start in (0, 8, 16)]
    for place in range(2):
        assert torch.equal(torch.cat([part[place] for part in parts]), whole[place])
    assert whole[1].std() > 0.1  # the weights differ


def test_weighted_average_is_that_over_uniform_steps() -> None:
    """Exactly, by p: Σ p_t w_t f_t is the mean of f; and by 40,000 draws within 4.5 standard errors."""
    times, f = full(), np.sin(np.arange(1, STEPS + 1)) + 2
    t, weight = times.sample(draw(0, 0, 40_000, 40_000), SCHEDULE)
    steps = (t * STEPS).round().long().numpy() - 1
    by_step = np.array([weight.numpy()[steps == step][0] for step in range(STEPS)])
    assert float((times.probabilities * by_step * f).sum()) == pytest.approx(f.mean(), rel=1e-13)
    values = weight.numpy() * f[steps]
    assert values.mean() == pytest.approx(f.mean(), abs=4.5 * values.std() / 200)


def test_state_is_a_copy_and_the_whole_of_it() -> None:
    """A saved state does not change with later losses; restored, even mid-way, it draws the same."""
    times = LossAware(STEPS, HISTORY, 0.05)
    for losses in LOSSES[:5]:
        see(times, losses)
    state = times.state_dict()
    again = LossAware(STEPS, HISTORY, 0.05)
    again.load_state_dict(state)
    for losses in LOSSES[5:]:
        see(times, losses)
    np.testing.assert_allclose(again.probabilities, formula(LOSSES[1:5].T, 0.05), rtol=1e-14)
    for losses in LOSSES[5:]:
        see(again, losses)
    assert again.probabilities.tolist() == times.probabilities.tolist()
    for mine, theirs in zip(*(s.sample(draw(7, 0, 50, 50), SCHEDULE) for s in (times, again)), strict=True):
        assert torch.equal(mine, theirs)


def test_history_of_another_chain_is_refused() -> None:
    for other in (LossAware(STEPS + 1, HISTORY), LossAware(STEPS, HISTORY + 1)):
        with pytest.raises(ValueError, match="loss history has shape"):
            other.load_state_dict(full().state_dict())
