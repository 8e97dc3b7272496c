"""The adaptive bound is unbiased, its 95% interval covers 95 times in a hundred, and it costs what was planned."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import noising as package
from noising.commands.bound_benchmark import full_sum_variance
from noising.diffusion.likelihood.adaptive import Adaptive, AdaptivePlan, Pilot, draws_needed
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.estimators import ImageSet, evaluate_draws, log_strata
from noising.diffusion.likelihood.meter import BoundMeter
from noising.diffusion.likelihood.terms import BoundTerms, ModelTerms, Term
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.schedules import LinearBeta
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import grey_levels
from noising.randomness import Streams
from tests.diffusion.helpers import images

IMAGES, STEPS, DRAWS = 24, 100, 4
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
    run = package.load(trained)
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


def estimate(terms: Cached, estimator: Adaptive, seed: int) -> tuple[dict[str, float], AdaptivePlan]:
    size = len(terms.table)
    chosen, index = image_set(size, seed), torch.arange(size)
    plan = estimator.plan(terms, chosen)
    meter = BoundMeter(plan, terms.timesteps)
    meter.update(evaluate_draws(terms, plan, chosen, index, chosen.fetch(index)[0], at_once=100_000))
    return meter.compute().numbers(), plan


@pytest.mark.parametrize(("name", "relative"), [("trained_terms", 0.01), ("oracle_terms", 0.02)])
def test_interval_covers_the_exact_sum_and_the_mean_is_unbiased(
    name: str, relative: float, request: pytest.FixtureRequest
) -> None:
    """1,000 whole evaluations, pilot and plan included, each with other draws, of terms that were cached."""
    terms: Cached = request.getfixturevalue(name)
    totals = terms.table.mean(2).sum(1) / LOG2
    exact, asked = float(totals.mean()), relative * float(totals.mean())
    found = []
    for seed in range(1000):
        numbers, plan = estimate(terms, Adaptive(asked, clip=None), seed)
        found.append([numbers[key] for key in ("bound", "bound_mc_se", "bound_low", "bound_high", "bound_image_se")])
        assert plan.draws % IMAGES == 0 or plan.draws < IMAGES
    bound, stated, low, high, image_se = np.array(found).T
    assert np.mean((low <= exact) & (exact <= high)) == pytest.approx(0.95, abs=0.02)
    spread = bound.std(ddof=1)
    assert abs(bound.mean() - exact) < 3 * spread / math.sqrt(len(bound))
    assert np.sqrt(np.mean(stated**2)) == pytest.approx(spread, rel=0.1)
    assert spread == pytest.approx(asked, rel=0.25)  # what was asked for is what was got
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
    found = [estimate(terms, Adaptive(0.2, pilot_times=16, clip=None), seed) for seed in range(120)]
    assert np.mean([plan.draws for _, plan in found]) < 200  # of 400 images
    bound = np.array([numbers["bound"] for numbers, _ in found])
    assert bound.std() == pytest.approx(0.2, rel=0.25)
    assert abs(bound.mean() - exact) < 3.5 * bound.std() / math.sqrt(len(bound))


def test_steps_are_drawn_where_the_terms_vary() -> None:
    """A systematic sample meets the planned shares to one draw in each stratum, and images come in whole rounds."""
    pilot = Pilot(log_strata(100, 6), torch.tensor([0.0, 4.0, 2.0, 1.0, 0.5, 0.1]).double(), 0.01, 0.02, 10, 60, 4)
    plan = AdaptivePlan(pilot, 0.3, 8, image_set(10, 0))
    places = plan.places(torch.arange(10), Streams(0, "", range(10)))
    assert plan.draws % 10 == 0
    assert torch.equal(torch.bincount(places.row), torch.full((10,), 8 * plan.draws // 10))
    assert torch.equal(torch.bincount(places.replicate), torch.full((8,), plan.draws))
    for replicate in range(8):
        steps = places.step[places.replicate == replicate]
        counts = torch.bincount(torch.searchsorted(pilot.edges, steps, right=True) - 1, minlength=6)
        assert bool(((counts - plan.draws * pilot.shares).abs() <= 1.5).all())
    # weights undo the shares: constant terms of 1 sum to T in each replicate
    total = torch.bincount(places.replicate, places.weight) / 10
    torch.testing.assert_close(total, torch.full((8,), 100.0, dtype=torch.float64))
    assert pilot.shares.sum().item() == pytest.approx(1)
    assert pilot.shares[0].item() == pytest.approx(0.05 / 6)


def test_draws_needed_joins_its_two_cases() -> None:
    """Just under one round of the images and just over it the plan is the same."""
    pilot = Pilot(log_strata(10, 3), torch.tensor([1.0, 2.0, 0.5]).double(), 30.0, 40.0, 64, 100, 1)
    edge = math.sqrt((pilot.variance - 30) / (1000 * 16))
    assert draws_needed(pilot, edge * 1.0001, 16, 1000) == pytest.approx(1000, abs=1)
    assert draws_needed(pilot, edge * 0.9999, 16, 1000) == 2000
    fewer = pilot._replace(image_variance=0.0)  # images alike: no reason to take them in rounds but the count
    assert draws_needed(fewer, 0.5, 16, 10**6) == math.ceil(pilot.variance / 4)
    assert draws_needed(fewer, 100.0, 16, 10**6) == 12  # four a stratum
    assert draws_needed(fewer, 100.0, 16, 5) == 15  # in whole rounds


def test_noise_of_the_full_sum(trained_terms: Cached) -> None:
    """Σ_t E Var(L_t | x), as the benchmark measures it, against the variance of all cached draws."""
    truth = float(trained_terms.table.var(2, correction=0).mean(0).sum()) / LOG2**2
    found = [full_sum_variance(trained_terms, image_set(IMAGES, seed)) for seed in range(20)]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(20))
    assert np.std(found) < truth


def test_terms_that_never_vary_need_few_draws() -> None:
    terms = Cached(torch.ones(5, 20, 2, dtype=torch.float64) * LOG2)
    numbers, plan = estimate(terms, Adaptive(0.01, clip=None), 0)
    assert plan.draws <= 80
    assert plan.evaluations == 5 * 32 + 8 * plan.draws  # the pilot's are counted
    assert numbers["bound"] == pytest.approx(20)
    assert numbers["bound_mc_se"] == pytest.approx(0, abs=1e-12)


def test_an_error_out_of_all_proportion_is_refused() -> None:
    terms = Cached(torch.rand(5, 20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    with pytest.raises(ValueError, match=r"stderr=1e-09 would take .* where all terms of all images take 1e\+02"):
        estimate(terms, Adaptive(1e-9, clip=None), 0)


@pytest.mark.parametrize("options", [{"stderr": 0.0}, {"stderr": math.nan}, {"replicates": 7}, {"pilot_images": 1}])
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Adaptive(**options)  # type: ignore[arg-type]
