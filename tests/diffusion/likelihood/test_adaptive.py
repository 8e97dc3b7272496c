"""The adaptive bound is unbiased, its 95% interval covers 95 times in a hundred, and it costs what was planned."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from noising.commands.bound_benchmark import full_sum_variance
from noising.diffusion.levels import NoiseLevel
from noising.diffusion.likelihood.adaptive import (
    Adaptive,
    AdaptivePlan,
    FullSum,
    _systematic_sample,
    _whole,
    draws_needed,
    variance_of_draws,
)
from noising.diffusion.likelihood.controls import ControlVariates
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.estimators import BoundPlan, evaluate_draws, log_strata
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.meter import BoundEstimate, BoundMeter, evaluate_bound
from noising.diffusion.likelihood.pilot import ImageSpread, Pilot
from noising.diffusion.likelihood.terms import BoundTerms, ModelTerms, Term
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.schedules import Cosine, LinearBeta
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import grey_levels
from noising.randomness import Streams
from noising.trained import load
from tests.diffusion.helpers import images

IMAGES, STEPS, DRAWS = 40, 200, 4
LOG2 = math.log(2)


class Cached(BoundTerms):
    """Terms that were evaluated before: (N, T, C) nats an image, step and noise; an image is its own number."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.timesteps = table.shape[1]

    def prior(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)

    def floor(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.prior(x)

    def level(self, steps: Tensor) -> NoiseLevel:
        return Chain.uniform(Cosine(self.timesteps), self.timesteps).level(steps)

    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        draws = self.table.shape[2]
        drawn = (torch.special.ndtr(noise.flatten().double()) * draws).long().clamp(max=draws - 1)
        nats = self.table[x.flatten().long(), steps - 1, drawn]
        return Term(nats, nats)


def cached(terms: BoundTerms, x: Tensor) -> Cached:
    steps = torch.arange(1, STEPS + 1)
    rows = []
    for number, image in enumerate(x):
        batch = image.expand(STEPS * DRAWS, *image.shape)
        noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(number)).to(x)
        rows.append(terms.at(batch, steps.repeat(DRAWS), noise).nats.double().reshape(DRAWS, STEPS).T)
    return Cached(torch.stack(rows) / x[0].numel())  # bits/dim of the bound are those of one pixel


@pytest.fixture(scope="module")
def trained_terms(trained: Path) -> Cached:
    run = load(trained)
    chain = Chain.uniform(run.denoiser.schedule, STEPS)
    terms = ModelTerms(run.denoiser, chain, DiscretizedGaussian(17), clip=1.0)
    with torch.no_grad():
        return cached(terms, run.data.scale(run.data.test.pixels[:IMAGES]))


@pytest.fixture(scope="module")
def oracle_terms() -> Cached:
    chances = torch.softmax(torch.linspace(0, 2, 17, dtype=torch.float64), 0)
    denoiser = oracle_denoiser(grey_levels(chances), LinearBeta(STEPS), Velocity(), FixedSmall())
    chain = Chain.uniform(denoiser.schedule, STEPS)
    return cached(ModelTerms(denoiser, chain, DiscretizedGaussian(17)), images(IMAGES))


def image_set(size: int, seed: int) -> ImageSet:
    return ImageSet(size, lambda index: (index.double().reshape(-1, 1, 1, 1), None), "cached", seed)


def estimate(terms: BoundTerms, estimator: Adaptive, chosen: ImageSet) -> tuple[dict[str, float], BoundPlan]:
    index, plan = torch.arange(chosen.size), estimator.plan(terms, chosen)
    meter = BoundMeter(plan, terms.timesteps)
    meter.update(evaluate_draws(terms, plan, chosen, index, chosen.fetch(index)[0], at_once=100_000))
    return meter.compute().numbers(), plan


def of_table(terms: Cached, estimator: Adaptive, seed: int) -> tuple[dict[str, float], BoundPlan]:
    return estimate(terms, estimator, image_set(len(terms.table), seed))


def pilot_of(spread: list[float], steps: int, image_variance: float = 0.0, rows: int = 10**9, dims: int = 1) -> Pilot:
    """A pilot with this spread of a term in each stratum."""
    edges, strata = log_strata(steps, len(spread)), len(spread)
    values = torch.tensor(spread).double() * edges.diff() ** 2
    return Pilot(edges, values, values, torch.zeros(strata, 3), image_variance, None, rows, dims)


def test_steps_are_drawn_where_the_terms_vary() -> None:
    """A systematic sample meets the planned shares to one draw in each stratum, and images come in whole rounds."""
    pilot = pilot_of([0.0, 16.0, 4.0, 1.0, 0.25, 0.01], 100)
    plan = AdaptivePlan(pilot, None, 8, 70, image_set(10, 0))
    places = plan.places(torch.arange(10), Streams(0, "", range(10)))
    assert torch.equal(torch.bincount(places.row), torch.full((10,), 8 * 7))
    assert torch.equal(torch.bincount(places.replicate), torch.full((8,), 70))
    for replicate in range(8):
        steps = places.step[places.replicate == replicate]
        counts = torch.bincount(torch.searchsorted(pilot.edges, steps, right=True) - 1, minlength=6)
        assert bool(((counts - 70 * pilot.shares).abs() <= 1.5).all())
    # weights undo the shares: constant terms of 1 sum to T in each replicate
    total = torch.bincount(places.replicate, places.weight) / 10
    torch.testing.assert_close(total, torch.full((8,), 100.0, dtype=torch.float64))
    assert pilot.shares.sum().item() == pytest.approx(1)
    assert pilot.shares[0].item() == pytest.approx(0.05 / 6, rel=1e-3)  # none of its own
    deviation = torch.tensor([0.0, 4.0, 2.0, 1.0, 0.5, 0.1]).double() * pilot.edges.diff()
    torch.testing.assert_close(pilot.shares - 0.05 / 6, 0.95 * deviation / deviation.sum(), atol=1e-4, rtol=0)
    # the fewer rows, the more evenly: two rows' weight of an even spread
    few = pilot._replace(rows=2).shares
    square = deviation**2
    expected = (2 * square + 2 * square.mean()).sqrt()
    torch.testing.assert_close(few - 0.05 / 6, 0.95 * expected / expected.sum())


def test_a_replicate_has_four_draws_a_stratum_at_least() -> None:
    """Else rounding to whole draws would change the shares."""
    assert draws_needed(pilot_of([1.0, 4.0, 0.25], 10, rows=1), 1e6, 8, 1000) == (8, 12)
    assert draws_needed(pilot_of([1.0, 4.0, 0.25, 1.0, 1.0], 10, rows=1), 1e6, 8, 1000) == (8, 20)
    assert draws_needed(pilot_of([1.0, 4.0, 0.25], 10, rows=1), 1e6, 8, 5) == (8, 15)  # in whole rounds of the images


@pytest.mark.parametrize(("images", "stderr"), [(5000, 0.2), (1000, 0.3), (400, 0.25), (20, 0.2), (3, 0.1), (20, 5.0)])
def test_draws_needed_give_the_error_that_is_asked_for(images: int, stderr: float) -> None:
    """Fewer draws than images, whole rounds of them, and the least that there are."""
    pilot = pilot_of([1.0, 4.0, 0.25], 10, 30.0, rows=64)
    replicates, draws = draws_needed(pilot, stderr, 8, images)
    assert 8 <= replicates <= 16
    variance = pilot.variance * (1 + 4 / 64)
    of_replicate = (variance - 30) / draws  # in whole rounds what differs between images cancels
    if draws % images:
        assert draws < images
        of_replicate = variance / draws - 30 / images
    assert variance_of_draws(pilot, draws, images) == pytest.approx(of_replicate)
    least = 0.85 / 0.15 * 2 * 64 * 3  # or the pilot would be more than 15%
    assert replicates * draws >= least
    assert of_replicate / replicates <= stderr**2
    if replicates * draws > 1.2 * least:
        closest = 0.85 if draws >= images else 0.99  # the last replicate is a whole one
        assert of_replicate / replicates > closest * stderr**2


def test_shares_are_rounded_to_the_nearest_whole_draws() -> None:
    """No other whole numbers from 1 that sum to m are nearer to 1 + share (m − K): by trying them all."""
    for shares, draws in (
        ([0.62, 0.2, 0.18], 12),
        ([0.05, 0.55, 0.4], 14),
        ([0.5, 0.2, 0.3], 7),
        ([0.11, 0.26, 0.17, 0.46], 17),
    ):
        exact = 1 + np.array(shares) * (draws - len(shares))
        others = (each for each in itertools.product(range(1, draws), repeat=len(shares)) if sum(each) == draws)
        nearest = min(others, key=lambda each: np.abs(np.array(each) - exact).sum())
        assert tuple(_whole(np.array(shares), draws)) == nearest


def test_a_sample_is_evenly_spaced() -> None:
    """Twice as many draws as steps in each stratum: every step twice, for half its weight, and every image once."""
    index, steps, weights = _systematic_sample(np.array([1, 2, 5, 11]), np.array([2, 6, 12]), image_set(20, 0), 0)
    assert [*steps] == [step for step in range(1, 11) for _ in range(2)]
    assert sorted(index) == [*range(20)]
    assert np.all(weights == 0.5)


def foreseen_plan(pilot: Pilot, size: int) -> BoundPlan:
    """The plan that follows from what a pilot tells, where the error is out of reach."""
    terms = Cached(torch.ones(size, int(pilot.edges[-1]) - 1, 1, dtype=torch.float64))
    return Adaptive(1e-9, clip=None).plan(terms, image_set(size, 0), lambda measured: pilot)


def test_fewer_than_four_draws_a_stratum_are_given_up_for_all_terms() -> None:
    """120 terms less a pilot of 4 or 5 rows, of 6 evaluations each, leave 12 or 11 draws for each of 8 replicates."""
    pilot = pilot_of([1.0, 4.0, 0.25], 10)
    pilot = pilot._replace(noise=1e9 * pilot.noise)  # so that all terms err more than draws
    enough, few = (foreseen_plan(pilot._replace(rows=rows), 12) for rows in (4, 5))
    assert isinstance(enough, AdaptivePlan)
    assert (enough.draws, enough.limited) == (12, True)
    assert isinstance(few, FullSum)
    assert few.limited


@pytest.mark.parametrize(("draws", "limited"), [(12, False), (13, True)])
def test_draws_may_cost_as_much_as_all_terms(draws: int, limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 (12) draws and 24 evaluations of a pilot are the 120 terms; of 8 (13), as many as cost no more are taken."""
    pilot = pilot_of([1.0, 4.0, 0.25], 10, rows=4)
    monkeypatch.setattr(Adaptive, "_draws", lambda self, pilot, images: (8, draws))
    plan = foreseen_plan(pilot._replace(noise=1e9 * pilot.noise), 12)
    assert (plan.evaluations, plan.limited) == (120, limited)


def test_the_error_is_in_bits_of_a_number() -> None:
    """V/error² draws, both in nats of all numbers, up to whole rounds; the spread of the images in bits of each."""
    pilot, unit = pilot_of([1.0, 4.0, 0.25], 1000, rows=64, dims=7), (7 * LOG2) ** 2
    scale = 20_000 * 0.2**2 * unit / pilot.variance
    pilot = pilot._replace(noise=scale * pilot.noise, spread=scale * pilot.spread, image_spread=ImageSpread(3, 5, 9))
    terms = Cached(torch.ones(400, 1000, 1, dtype=torch.float64))
    plan = Adaptive(0.2, clip=None).plan(terms, image_set(400, 0), lambda measured: pilot)
    assert plan.evaluations - pilot.evaluations == pytest.approx(20_000 * (1 + 4 / 64), rel=0.05)
    assert plan.image_spread == pytest.approx((3 / unit, 5 / unit, 9))


@pytest.mark.parametrize(("timesteps", "draws"), [(8, 27), (10, 30), (18, 60)])
def test_the_plan_of_the_smaller_error_is_taken(timesteps: int, draws: int) -> None:
    """All terms if their noise varies less than 8 replicates do: by a hundredth, for part of a round, one and two."""
    pilot = pilot_of([1.0, 4.0, 0.25], timesteps, 3.0, rows=4)
    between = 3 * max(1 / draws - 1 / 30, 0)  # of 30 images
    of_draws = ((2 * pilot.variance - 3) / draws + between) / 8  # larger by 1 + 4/4
    unit = float((pilot.noise / pilot.edges.diff()).sum()) / 30  # of the mean of all images' terms
    for part, kind in ((0.99, FullSum), (1.01, AdaptivePlan)):
        plan = foreseen_plan(pilot._replace(noise=part * of_draws / unit * pilot.noise), 30)
        assert type(plan) is kind
        assert plan.even == (kind is FullSum or draws != 27)
        assert plan.evaluations == 4 * 6 + (30 * timesteps if kind is FullSum else 8 * draws)


def test_all_terms_have_the_error_of_each_parts_noise() -> None:
    """By hand: noise of 1, 2 and 3 nats² in the sums of 1, 3 and 6 steps, the first of them the decoder's."""
    pilot = pilot_of([1.0, 1.0, 1.0], 10, rows=5, dims=7)
    pilot = pilot._replace(noise=torch.tensor([1.0, 2.0, 3.0]).double() * pilot.edges.diff())
    plan = foreseen_plan(pilot, 4)
    assert plan.noise is not None
    unit = 4 * (7 * LOG2) ** 2  # of the mean of four images, in bits of seven numbers
    assert [part.value * unit for part in plan.noise] == pytest.approx([5, 1, 6])
    # Satterthwaite: each stratum has a degree for every row
    assert [part.freedom for part in plan.noise] == pytest.approx([5 * 25 / (4 + 9), 5, 5 * 36 / (1 + 4 + 9)])


@pytest.mark.parametrize(("draws", "most", "rows"), [(100, 1000, 12), (60, 1000, 8), (1000, 32, 32), (10**9, 1000, 40)])
def test_a_pilot_grows_to_its_share(draws: int, most: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 15% of 0.6 of the evaluations that it foresees, in rows of six: two for each of three strata.

    Of 8 (100) draws these are 72 evaluations; of 8 (60) fewer than the least rows take; of 8 (1000) more than are
    allowed. All 1600 terms allow 240.
    """
    monkeypatch.setattr(Adaptive, "_draws", lambda self, pilot, images: (8, draws))
    terms = Cached(torch.ones(160, 10, 1, dtype=torch.float64))
    plan = Adaptive(pilot_times=6, pilot_images=most, clip=None).plan(terms, image_set(160, 0))
    assert plan.pilot_evaluations == 6 * rows


def test_noise_of_the_full_sum(trained_terms: Cached) -> None:
    """Σ_t E Var(L_t | x), as the benchmark measures it, against the variance of all cached draws."""
    truth = float(trained_terms.table.var(2, correction=0).mean(0).sum()) / LOG2**2
    found = [full_sum_variance(trained_terms, image_set(IMAGES, seed)) for seed in range(20)]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(20))
    assert np.std(found) < truth


def test_terms_that_never_vary_need_few_draws() -> None:
    terms = Cached(torch.ones(50, 20, 2, dtype=torch.float64) * LOG2)
    numbers, plan = of_table(terms, Adaptive(0.01, pilot_times=8, clip=None), 0)
    assert plan.pilot_evaluations == 2 * 4 * 8
    assert plan.evaluations < 50 * 20 / 2
    assert numbers["bound"] == pytest.approx(20)
    assert numbers["bound_mc_se"] == pytest.approx(0, abs=1e-12)


class Foreseen(BoundTerms):
    """Terms on 4x4 images of a closed sum: control variates foresee most of their noise and of their images.

    L_t = e^(scale_i) (1 + 8 ‖x‖²/D + (‖ε‖²/D − 1) + tanh(ε_1)/5)/t
    """

    def __init__(self, size: int, timesteps: int = 200, heavy: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(size)
        self.x = torch.randn(size, 1, 4, 4, generator=generator).double().clamp(-1, 1)
        self.scale = torch.exp(heavy * torch.randn(size, generator=generator).double())
        self.timesteps = timesteps
        self.chain = Chain.uniform(Cosine(timesteps), timesteps)

    @property
    def bound(self) -> float:
        """Bits/dim of the mean over the images."""
        return float(self.bounds.mean())

    @property
    def bounds(self) -> Tensor:
        """Bits/dim of each image, (N,)."""
        of_first = self.scale * (1 + 8 * self.x.square().flatten(1).mean(1)) / 16 / LOG2
        return of_first * sum(1 / step for step in range(1, 1 + self.timesteps))

    def images(self, seed: int) -> ImageSet:
        return ImageSet(len(self.x), lambda index: (self.x[index], None), "foreseen", seed)

    def prior(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)

    floor = lambda self, x, noise: self.prior(x)  # noqa: E731

    def level(self, steps: Tensor) -> NoiseLevel:
        return self.chain.level(steps)

    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        which = (x.flatten(1)[:, None] == self.x.flatten(1)).all(2).double().argmax(1)
        square, energy = (values.square().flatten(1).mean(1) for values in (noise, x))
        nats = self.scale[which] * (8 * energy + square + noise.flatten(1)[:, 0].tanh() / 5) / steps
        return Term(nats, nats)


def without_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ControlVariates, "of_noise", lambda self, x, level, noise: torch.zeros_like(x[:, 0, 0, 0]))
    given = ControlVariates.__init__

    def nothing(self: ControlVariates, images: ImageSet) -> None:
        given(self, images)
        self.of_images = torch.zeros_like(self.of_images)

    monkeypatch.setattr(ControlVariates, "__init__", nothing)


@pytest.mark.parametrize("heavy", [0.0, 0.7])
@pytest.mark.parametrize(
    ("size", "asked"), [(1, 0.05), (2, 0.04), (6, 0.03), pytest.param(360, 0.02, marks=pytest.mark.slow)]
)
def test_the_error_is_that_which_was_asked_for_however_few_the_images(size: int, asked: float, heavy: float) -> None:
    """100 evaluations; less where the least draws are more than are needed."""
    terms = Foreseen(size, 1000, heavy)
    asked *= terms.bound
    found = [estimate(terms, Adaptive(asked, clip=None), terms.images(seed)) for seed in range(100)]
    spread = np.std([numbers["bound"] for numbers, _ in found], ddof=1)
    assert spread < 1.25 * asked
    stated = math.sqrt(np.mean([numbers["bound_mc_se"] ** 2 for numbers, _ in found]))
    assert stated == pytest.approx(spread, rel=0.25)
    assert not any(plan.limited for _, plan in found)


def test_no_more_is_spent_than_on_all_terms() -> None:
    """A smaller error than all terms give: as many draws instead, of a smaller error than theirs."""
    terms = Foreseen(6, 1000)
    found = [estimate(terms, Adaptive(1e-9, clip=None), terms.images(seed)) for seed in range(60)]
    assert all(plan.limited and 5000 < plan.evaluations <= 6000 for _, plan in found)
    for _, plan in found:  # in whole rounds of the images
        rows = plan.places(torch.arange(6), Streams(0, "", range(6))).row
        assert len(torch.bincount(rows).unique()) == 1
    spread = np.std([numbers["bound"] for numbers, _ in found], ddof=1)
    assert math.sqrt(np.mean([numbers["bound_mc_se"] ** 2 for numbers, _ in found])) == pytest.approx(spread, rel=0.25)
    of_all_terms = [terms.at(*every(terms, seed)).nats.sum() / 6 / 16 / LOG2 for seed in range(60)]
    assert spread < 0.5 * np.std(of_all_terms, ddof=1)


def every(terms: Foreseen, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, steps and noise of all terms of all images."""
    size, generator = len(terms.x), torch.Generator().manual_seed(seed)
    noise = torch.randn(size * terms.timesteps, 1, 4, 4, generator=generator).double()
    x = terms.x.repeat_interleave(terms.timesteps, 0)
    return x, torch.arange(1, terms.timesteps + 1).repeat(size), noise


@pytest.mark.parametrize(("size", "timesteps"), [(24, 4), (2, 3), (1, 20)])
def test_all_terms_of_few_steps_are_taken_with_the_error_of_their_noise(size: int, timesteps: int) -> None:
    """Where draws would err more: all terms once, and a pilot's word for their error."""
    terms = Foreseen(size, timesteps)
    found = [estimate(terms, Adaptive(1e-9, clip=None), terms.images(seed)) for seed in range(400)]
    assert all(type(plan) is FullSum for _, plan in found)
    full = size * timesteps
    assert all(plan.evaluations - plan.pilot_evaluations == full for _, plan in found)
    assert all(plan.pilot_evaluations <= max(0.15 * full, 2 * 2 * min(timesteps, 16)) for _, plan in found)
    for name in ("bound", "steps", "decoder"):
        numbers = np.array([numbers[name] for numbers, _ in found])
        stated = np.array([numbers[f"{name}_mc_se"] for numbers, _ in found])
        assert math.sqrt(np.mean(stated**2)) == pytest.approx(np.std(numbers, ddof=1), rel=0.2)
    bound, low, high = (np.array([numbers[f"bound{end}"] for numbers, _ in found]) for end in ("", "_low", "_high"))
    assert abs(bound.mean() - terms.bound) < 3.5 * bound.std() / 20
    assert np.mean((low <= terms.bound) & (terms.bound <= high)) > 0.92


@pytest.mark.parametrize(
    "options",
    [
        {"stderr": 0.0},
        {"stderr": 1e-300},
        {"stderr": 1e300},
        {"stderr": math.nan},
        {"replicates": 7},
        {"pilot_images": 1},
        {"pilot_times": 5},
    ],
)
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Adaptive(**options)  # type: ignore[arg-type]


def test_the_least_options_are_taken() -> None:
    Adaptive(replicates=8, pilot_images=2, pilot_times=4)


@pytest.mark.parametrize(("name", "relative"), [("trained_terms", 0.005), ("oracle_terms", 0.014)])
def test_interval_covers_the_exact_sum_and_the_mean_is_unbiased(
    name: str, relative: float, request: pytest.FixtureRequest
) -> None:
    """300 whole evaluations, pilot and plan included, each with other draws, of terms that were cached."""
    terms: Cached = request.getfixturevalue(name)
    totals = terms.table.mean(2).sum(1) / LOG2
    exact, asked = float(totals.mean()), relative * float(totals.mean())
    found = []
    for seed in range(300):
        numbers, plan = of_table(terms, Adaptive(asked, clip=None), seed)
        found.append([numbers[key] for key in ("bound", "bound_mc_se", "bound_low", "bound_high", "bound_image_se")])
        assert plan.pilot_evaluations <= 0.15 * plan.evaluations
    bound, stated, low, high, image_se = np.array(found).T
    assert np.mean((low <= exact) & (exact <= high)) == pytest.approx(0.95, abs=0.03)
    spread = bound.std(ddof=1)
    assert abs(bound.mean() - exact) < 3 * spread / math.sqrt(len(bound))
    assert np.sqrt(np.mean(stated**2)) == pytest.approx(spread, rel=0.1)
    assert 0.7 * asked < spread < 1.25 * asked  # what was asked for is what was got, or a little more
    # the pilot or the draws, whichever is surer, tell the spread over images; nan where it is lost
    assert np.sqrt(np.mean(np.nan_to_num(image_se) ** 2)) == pytest.approx(
        float(totals.std()) / math.sqrt(IMAGES), rel=0.15
    )


def test_fewer_evaluations_than_images_are_as_good_as_planned() -> None:
    """Where not every image has its turn, the images left out are part of the error."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(0.5 * torch.randn(400, 1, 1, generator=generator).double())
    noise = torch.exp(0.5 * torch.randn(400, 30, 4, generator=generator).double())
    terms = Cached(scale * noise / torch.arange(1, 31)[None, :, None])
    exact = float(terms.table.mean(2).sum(1).mean()) / LOG2
    found = [of_table(terms, Adaptive(0.09, pilot_times=16, clip=None), seed) for seed in range(120)]
    assert np.mean([plan.even for _, plan in found]) < 0.7
    bound = np.array([numbers["bound"] for numbers, _ in found])
    assert bound.std() == pytest.approx(0.09, rel=0.25)
    assert abs(bound.mean() - exact) < 3.5 * bound.std() / math.sqrt(len(bound))


@pytest.mark.parametrize(("size", "asked"), [pytest.param(400, 0.005, marks=pytest.mark.slow), (30, 0.004)])
def test_control_variates_need_fewer_draws_and_leave_the_bound_alone(
    size: int, asked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 evaluations with them, each with a pilot and coefficients of its own, and what it costs without."""
    terms = Foreseen(size)
    found = [estimate(terms, Adaptive(asked, clip=None), terms.images(seed)) for seed in range(150)]
    bound, low, high = (np.array([numbers[f"bound{end}"] for numbers, _ in found]) for end in ("", "_low", "_high"))
    spread = bound.std(ddof=1)
    assert abs(bound.mean() - terms.bound) < 3 * spread / math.sqrt(len(bound))
    assert np.mean((low <= terms.bound) & (terms.bound <= high)) == pytest.approx(0.95, abs=0.045)
    assert spread < 1.25 * asked
    assert all(plan.pilot_evaluations <= 0.15 * plan.evaluations for _, plan in found)
    # the images' spread is that of their bounds, whatever was taken off them
    stated = np.nanmean([numbers["bound_image_se"] for numbers, _ in found])
    assert stated == pytest.approx(float(terms.bounds.std()) / math.sqrt(size), rel=0.15)
    cost = np.mean([plan.evaluations for _, plan in found])
    without_controls(monkeypatch)
    plain = [Adaptive(asked, clip=None).plan(terms, terms.images(seed)).evaluations for seed in range(20)]
    assert cost < 0.6 * np.mean(plain)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [1.0, 0.0, 3.0])
@pytest.mark.parametrize(("size", "part"), [(2, 1.1), (6, 0.7), (360, 0.7)])
def test_the_error_of_networks_is_that_which_was_asked_for(
    weights: float, size: int, part: float, trained: Path
) -> None:
    """A trained network, one that says nothing, and one out of all bounds: 100 evaluations of test images each.

    part: of the error that the least draws give.
    """
    run = load(trained)

    def evaluations(stderr: float, count: int) -> list[BoundEstimate]:
        keyed = (chosen._replace(seed=seed) for seed in range(count))
        return [evaluate_bound(terms, Adaptive(stderr), images, 256) for images in keyed]

    with torch.no_grad():
        for parameter in run.denoiser.parameters():
            parameter.mul_(weights)
        terms, chosen = run.bound_terms(1.0), run.image_set("test", size=size)
        asked = part * math.sqrt(np.mean([each.numbers()["bound_mc_se"] ** 2 for each in evaluations(1e9, 20)]))
        found = evaluations(asked, 100)
    bound, stated = (np.array([each.numbers()[name] for each in found]) for name in ("bound", "bound_mc_se"))
    spread = bound.std(ddof=1)
    assert math.sqrt(np.mean(stated**2)) == pytest.approx(spread, rel=0.25)
    assert spread < 1.25 * asked
    assert spread > 0.75 * asked
    assert all(each.plan.evaluations <= 1000 * size for each in found)
