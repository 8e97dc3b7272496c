"""Times that follow the loss: which losses count, what they make of p_t, and that no average is bent by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from noising.diffusion.schedules import Cosine
from noising.diffusion.times import BatchSlot, LossAware
from noising.randomness import generator

STEPS, HISTORY = 6, 4
SCHEDULE = Cosine(1000)


def draw(step: int, start: int, size: int, total: int) -> BatchSlot:
    return BatchSlot(generator(0, "times", step), start, size, total)


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
    """What is seen later does not change it; restored, even mid-way, draws go on the same."""
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
