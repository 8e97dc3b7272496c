"""One step and chains of steps against the papers' arrays, and against one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from noising.diffusion.schedules import Cosine, LinearBeta, Schedule
from noising.diffusion.transitions import Chain, Transition
from noising.diffusion.variances import FixedLarge, FixedSmall
from tests.diffusion.helpers import close, images, normals, pair
from tests.reference import ddpm

PAIRS = [("linear", 1000), ("cosine", 1000), ("cosine", 4000)]


@pytest.mark.parametrize(("name", "timesteps"), PAIRS)
def test_papers_arrays_by_name(name: str, timesteps: int) -> None:
    chain, reference = pair(name, timesteps)
    close(chain.beta, reference.beta[1:], rtol=1e-8)
    close(chain.alpha, reference.alpha[1:])
    close(chain.alpha_bar, reference.alpha_bar[1:])
    close(chain.posterior_variance, reference.posterior_variance[1:], rtol=1e-8, atol=1e-20)


@pytest.mark.parametrize(("name", "timesteps"), PAIRS)
def test_forward_posterior_and_variances_are_the_papers(name: str, timesteps: int) -> None:
    chain, reference = pair(name, timesteps)
    x, x_t = images(4), normals(4, 1, 3, 3)
    for t in (1, 2, 3, timesteps // 2, timesteps - 1, timesteps):
        step = chain[t]
        forward = step.forward(x_t)
        mean, variance = reference.forward(x_t.numpy(), t)
        close(forward.mean, mean)
        close(forward.log_variance.exp(), variance, rtol=1e-8)
        mean, variance = reference.posterior(x.numpy(), x_t.numpy(), t)
        close(step.mean(x_t, x), mean)
        close(step.posterior_variance, variance, rtol=1e-8, atol=1e-300)
        close(FixedSmall().log_variance(step, None), reference.fixed_small[t], rtol=1e-9)
        close(FixedLarge().log_variance(step, None), reference.fixed_large[t], rtol=1e-9)


@pytest.mark.parametrize(("name", "timesteps"), PAIRS[:2])
def test_respaced_chain_is_the_papers(name: str, timesteps: int) -> None:
    chain, reference = pair(name, timesteps)
    steps = np.arange(20, timesteps + 1, 20)
    respaced = ddpm.DDPM(ddpm.respaced_beta(reference.alpha_bar, steps))
    ours = Chain(chain.schedule, torch.from_numpy(steps / timesteps))
    close(ours.beta, respaced.beta[1:], rtol=1e-8)
    close(torch.stack([ours[t].small_log_variance for t in range(1, 51)]), respaced.fixed_small[1:], rtol=1e-9)


def test_a_step_for_each_image_is_the_step_of_each(schedule: Schedule) -> None:
    chain = Chain.uniform(schedule, 1000)
    x, x_t = images(3), normals(3, 1, 3, 3)
    steps = torch.tensor([1, 2, 777])
    together = chain[steps]
    for place, step in enumerate(steps.tolist()):
        alone = chain[step]
        close(together.mean(x_t, x)[place], alone.mean(x_t, x)[place].numpy(), rtol=1e-14)
        assert together.small_log_variance[place].item() == alone.small_log_variance.item()
        assert together.large_log_variance[place].item() == alone.large_log_variance.item()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 999), min_size=3, max_size=3, unique=True),
    st.sampled_from([LinearBeta(1000), Cosine(1000)]),
)
def test_steps_compose(steps: list[int], schedule: Schedule) -> None:
    """Forward: r -> s -> t is r -> t. Reverse: q(x_s | x_t, x) then q(x_r | x_s, x) is q(x_r | x_t, x), in moments."""
    r, s, t = sorted(steps)
    level = [schedule(torch.tensor(step / 1000)) for step in (r, s, t)]
    nothing = torch.zeros((), dtype=torch.float64)
    near, far, whole = (
        Transition(level[later], level[earlier], nothing) for later, earlier in ((1, 0), (2, 1), (2, 0))
    )
    for step in (near, far, whole):
        assert 0 < step.c.item() <= 1
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    scale = near.forward(one).mean * far.forward(one).mean
    close(whole.forward(one).mean, scale.item(), rtol=1e-11)
    passed_on = far.forward(one).mean ** 2 * near.forward(one).log_variance.exp()
    close(
        whole.forward(one).log_variance.exp(),
        (passed_on + far.forward(one).log_variance.exp()).item(),
        rtol=1e-9,
    )
    close(whole.mean(one, zero), (near.mean(one, zero) * far.mean(one, zero)).item(), rtol=1e-9)
    close(whole.mean(zero, one), (near.mean(far.mean(zero, one), one)).item(), rtol=1e-9)
    spread = near.mean(one, zero) ** 2 * far.posterior_variance + near.posterior_variance
    close(whole.posterior_variance, spread.item(), rtol=1e-8)


def test_first_step_takes_the_seconds_variance(schedule: Schedule) -> None:
    chain = Chain.uniform(schedule, 1000)
    assert chain[1].posterior_variance.item() == 0
    second = chain[2].posterior_variance.log()
    close(chain[1].small_log_variance, second.item(), rtol=1e-14)
    close(FixedLarge().log_variance(chain[1], None), second.item(), rtol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_first_variance_of_the_shortest_chains(steps: int) -> None:
    """Of a chain of one step the forward variance; of two, the second's posterior variance, of the closed form."""
    chain = Chain(LinearBeta(1000), torch.linspace(0.3, 1, steps, dtype=torch.float64))
    beta, alpha_bar = chain.beta.tolist(), chain.alpha_bar.tolist()
    expected = beta[0] if steps == 1 else beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])
    assert chain[1].small_log_variance.exp().item() == pytest.approx(expected, rel=1e-10)


def test_all_steps_at_once_are_the_steps(schedule: Schedule) -> None:
    chain = Chain.uniform(schedule, 5)
    for field in ("c", "posterior_variance", "small_log_variance", "large_log_variance"):
        each = torch.stack([getattr(chain[step], field) for step in range(1, 6)])
        torch.testing.assert_close(getattr(chain.steps, field), each, rtol=1e-14, atol=0)


def test_chains_refuse_what_is_no_chain(schedule: Schedule) -> None:
    for times in ([], [0.0, 1.0], [0.5, 0.4], [0.5, 1.1]):
        with pytest.raises(ValueError, match="must rise within"):
            Chain(schedule, torch.tensor(times, dtype=torch.float64))
    with pytest.raises(IndexError, match="1 to 10"):
        Chain.uniform(schedule, 10)[0]
