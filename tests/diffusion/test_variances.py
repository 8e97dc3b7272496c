"""Reverse variances on every schedule, against Gaussians conditioned by the textbook."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.schedules import Cosine, LinearBeta, Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import (
    DenoisingError,
    FixedLarge,
    FixedSmall,
    Learned,
    LearnedRange,
    Optimal,
    ReverseVariance,
)
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian, grey_levels
from noising.verification.gaussian_data import expected_bound
from tests.diffusion.helpers import Crooked, denoiser_of, final_classes, normals

STEPS = 40
STD = 0.6


class Error(NamedTuple):
    """E‖x − x̂‖²/D of the perfect denoiser of N(0, std²): s²σ²/(α²s² + σ²)."""

    std: float

    def __call__(self, level: NoiseLevel) -> Tensor:
        data, noise = (level.alpha * self.std) ** 2, level.sigma**2
        return self.std**2 * noise / (data + noise)


@pytest.mark.parametrize("step", [1, 2, 20, 40])
def test_optimal_is_the_conditional_variance_of_gaussian_data(schedule: Schedule, step: int) -> None:
    """x_s given x_t, both Gaussian: Var x_s − Cov²/Var x_t. To 1e-8."""
    transition = Chain.uniform(schedule, STEPS)[step]
    t, s = transition.later, transition.earlier
    own_s, own_t = ((v.alpha * STD) ** 2 + v.sigma**2 for v in (s, t))
    together = t.alpha / s.alpha * own_s
    found = Optimal(error=Error(STD)).log_variance(transition, None).exp()
    scale = float(own_s)  # the difference is taken of numbers of this size
    assert found.item() == pytest.approx(float(own_s - together**2 / own_t), rel=1e-8, abs=1e-12 * scale)


@pytest.mark.parametrize("step", [1, 2, 20, 40])
def test_optimal_adds_the_error_of_any_denoiser(schedule: Schedule, step: int) -> None:
    """c σ_s² + (α_s c)² error, written with c = 1 − snr_t/snr_s; to 1e-9."""
    transition = Chain.uniform(schedule, STEPS)[step]
    t, s = transition.later, transition.earlier
    c = 1 - (t.alpha * s.sigma / (t.sigma * s.alpha)) ** 2
    found = Optimal(error=lambda level: 0.03 * torch.ones_like(level.alpha)).log_variance(transition, None).exp()
    assert found.item() == pytest.approx(float(c * s.sigma**2 + (s.alpha * c) ** 2 * 0.03), rel=1e-9)


@pytest.mark.parametrize("step", [2, 20, 40])
def test_fixed_variances_are_the_textbooks(schedule: Schedule, step: int) -> None:
    """Large: what x_t has beside the scaled x_s. Small: 1/(1/σ_s² + ratio²/large), the product of the Gaussians."""
    transition = Chain.uniform(schedule, STEPS)[step]
    t, s = transition.later, transition.earlier
    ratio = t.alpha / s.alpha
    large = float(t.sigma**2 - (ratio * s.sigma) ** 2)
    small = 1 / (1 / float(s.sigma) ** 2 + float(ratio) ** 2 / large)
    assert FixedLarge().log_variance(transition, None).exp().item() == pytest.approx(large, rel=1e-8)
    assert FixedSmall().log_variance(transition, None).exp().item() == pytest.approx(small, rel=1e-8)
    raw = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    ends = LearnedRange().log_variance(transition, raw).exp().flatten().tolist()
    assert ends == pytest.approx([small, large], rel=1e-8)


def test_measured_error_is_kept_through_every_move() -> None:
    """A state of other knots replaces this one's; halving the module leaves the table in float64, bit by bit."""
    one, two = DenoisingError(), DenoisingError()
    one.set(torch.tensor([-6.0, 0.3, 7.1]), torch.tensor([0.25, 0.07, 1e-4]))
    two.set(torch.tensor([-1.0, 1.0]), torch.tensor([0.9, 0.8]))
    two.load_state_dict(one.half().to(torch.bfloat16).state_dict())
    for ours, theirs in ((two.log_snr, one.log_snr), (two.log_error, one.log_error)):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, theirs)
    assert two.log_error.exp().tolist() == pytest.approx([0.25, 0.07, 1e-4], rel=1e-7)


# Variances that are learned or fitted


def test_every_final_class_is_tested() -> None:
    assert final_classes(ReverseVariance) == {FixedSmall, FixedLarge, Learned, LearnedRange, Optimal}


@pytest.mark.parametrize("step", [1, 2, 500, 1000])
def test_learned_range_is_a_line_between_the_fixed_logarithms(step: int) -> None:
    transition = Chain.uniform(LinearBeta(1000), 1000)[step]
    small, large = transition.small_log_variance, (transition.c * transition.later.sigma**2).log()
    raw = torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    expected = torch.stack([small, (small + large) / 2, large, 2 * large - small])
    torch.testing.assert_close(LearnedRange().log_variance(transition, raw).flatten(), expected, rtol=1e-12, atol=0)
    assert torch.equal(Learned().log_variance(transition, raw), raw)


def test_error_is_exact_at_its_knots_and_straight_in_the_logarithm_between() -> None:
    table, schedule = DenoisingError(), Cosine(1000)
    assert not table
    table.set(torch.tensor([-4.0, 0.0, 6.0]), torch.tensor([0.3, 0.1, 1e-3]))
    at = torch.tensor([-9.0, -4.0, 0.0, 3.0, 6.0, 9.0], dtype=torch.float64)
    level = schedule(schedule.time(at))
    expected = torch.tensor([0.3, 0.3, 0.1, 1e-2, 1e-3, 1e-4], dtype=torch.float64)  # a power of ten for each 3
    torch.testing.assert_close(table(level).flatten(), expected, rtol=1e-6, atol=0)


def test_error_is_part_of_the_state_and_stays_in_float64() -> None:
    schedule = Cosine(1000)
    one, two = (denoiser_of(Crooked(), schedule, variance=Optimal()) for _ in range(2))
    assert isinstance(one.variance, Optimal)
    one.variance.error.set(torch.linspace(-5, 8, 7), torch.linspace(0.3, 0.01, 7))
    two.load_state_dict(copy.deepcopy(one.half().state_dict()))
    step = Chain.uniform(schedule, 100)[30]
    assert torch.equal(two.variance.log_variance(step, None), one.variance.log_variance(step, None))
    assert two.variance.log_variance(step, None).dtype == torch.float64


def test_a_state_of_something_else_is_refused() -> None:
    line, table = torch.linspace(-5, 8, 7), DenoisingError()
    for state in (None, {"log_snr": line}, {"log_snr": line, "log_error": line[:3]}, {"log_snr": line, "log_error": 1}):
        with pytest.raises(ValueError, match="the checkpoint stores no error by log SNR"):
            table.set_extra_state(state)
    for other in (line.reshape(1, 7), line.long()):
        with pytest.raises(ValueError, match="the checkpoint stores no error by log SNR"):
            table.set_extra_state({"log_snr": other, "log_error": other})
    table.set_extra_state(DenoisingError().get_extra_state())  # of one that was never measured
    assert not table


def test_until_it_is_fitted_it_is_the_posteriors_own() -> None:
    step = Chain.uniform(Cosine(1000), 100)[30]
    assert torch.equal(Optimal().log_variance(step, None), step.small_log_variance)


def fitted(schedule: Schedule, count: int = 4000) -> tuple[Optimal, Tensor]:
    variance = Optimal(knots=40)
    denoiser = oracle_denoiser(gaussian(0.5), schedule, Velocity(), variance)
    noises = (normals(count, 1, 2, 2, seed=knot) for knot in range(1, 41))
    denoiser.fit_variance(0.5 * normals(count, 1, 2, 2), noises, timesteps=1000, clip=None)
    assert isinstance(variance.error, DenoisingError)
    return variance, variance.error.log_snr


def test_fit_finds_the_oracles_error(preserving: Schedule) -> None:
    """A mean of 16,000 squares: 1% standard error, 4.5 of them over forty knots."""
    variance, log_snr = fitted(preserving)
    level = preserving(preserving.time(log_snr))
    torch.testing.assert_close(variance.error(level), gaussian(0.5).error(level), rtol=0.05, atol=0)


def test_fit_measures_what_clipping_leaves() -> None:
    """Data ±1 whose x̂ is kept in [−¼, ¼]: off by at least ¾ at every level, and by 1 where nothing is seen."""
    signs = 2 * torch.randint(0, 2, (500, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double() - 1
    variance = Optimal(knots=10)
    oracle = grey_levels(torch.tensor([0.5, 0.5], dtype=torch.float64))
    denoiser = oracle_denoiser(oracle, Cosine(1000), Velocity(), variance)
    denoiser.fit_variance(signs, (normals(500, 1, 2, 2, seed=knot) for knot in range(10)), timesteps=1000, clip=0.25)
    assert isinstance(variance.error, DenoisingError)
    error = variance.error.log_error.exp()
    assert error[-1].item() == pytest.approx(0.75**2, rel=1e-9)  # next to clean x̂ is sure of the sign
    assert error[0].item() == pytest.approx(1, rel=0.01)


def test_fitted_variance_is_as_good_as_the_closed_form_and_better_than_the_fixed() -> None:
    schedule = LinearBeta(1000)
    chain, oracle = Chain.uniform(schedule, 1000), gaussian(0.5)

    def total(variance: ReverseVariance) -> float:
        return expected_bound(oracle_denoiser(oracle, schedule, Velocity(), variance), chain).total

    best = total(Optimal(error=oracle.error))
    found = total(fitted(schedule)[0])
    assert best <= found < best + 2e-3
    assert min(total(FixedSmall()), total(FixedLarge())) > best + 0.1


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_no_other_variance_does_better_for_an_imperfect_denoiser(factor: float) -> None:
    """E‖x − x̂‖² of the denoiser itself, not of the perfect one, is what makes the bound least."""
    schedule, oracle = LinearBeta(1000), gaussian(0.5)
    chain = Chain.uniform(schedule, 1000)
    denoiser = oracle_denoiser(oracle, schedule, Velocity(), FixedSmall())
    perfect = denoiser.model.forward
    denoiser.model.forward = lambda x, noise_label, class_label=None: perfect(x, noise_label) + 0.1 * x  # type: ignore

    def own_error(level):  # type: ignore[no-untyped-def]
        x, noise = (0.5 * torch.tensor([1.0, 1, -1, -1]).double(), torch.tensor([1.0, -1, 1, -1]).double())
        x, noise = (v.reshape(1, 1, 2, 2).expand(level.t.numel(), -1, -1, -1) for v in (x, noise))
        off = denoiser.at(level.perturb(x, noise), level).x - x
        return off.square().mean((1, 2, 3)).reshape(level.alpha.shape)

    denoiser.variance = Optimal(error=own_error)
    best = expected_bound(denoiser, chain).total
    denoiser.variance = Optimal(error=lambda level: factor * own_error(level))
    assert expected_bound(denoiser, chain).total > best + 1e-4


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="knots must be at least 2"):
        Optimal(knots=1)
    with pytest.raises(ValueError, match="images must be at least 1"):
        Optimal(images=0)
