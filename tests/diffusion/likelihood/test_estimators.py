"""Estimators are unbiased, their standard errors are true, and how images are split up does not matter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st

from noising.diffusion.likelihood.adaptive import Adaptive
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.estimators import (
    BoundDraws,
    BoundEstimator,
    BoundPlan,
    Exact,
    StrataPlan,
    Stratified,
    evaluate_draws,
    log_strata,
)
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.meter import BoundMeter
from noising.diffusion.likelihood.terms import Difference, ModelTerms, variational_bound
from noising.diffusion.parameterizations import CleanImage
from noising.diffusion.schedules import Cosine, LinearBeta
from noising.diffusion.transitions import Chain
from noising.randomness import Streams, generator
from tests.diffusion.helpers import Crooked, denoiser_of, final_classes, images

DECODER = DiscretizedGaussian(17)


def terms_of(timesteps: int, model: Crooked | None = None, clip: float | None = 1.0) -> ModelTerms:
    schedule = Cosine(timesteps)
    return ModelTerms(denoiser_of(model or Crooked(), schedule), Chain.uniform(schedule, timesteps), DECODER, clip)


def meter_of(
    terms: ModelTerms, estimator: BoundEstimator, x: torch.Tensor, *parts: list[int], seed: int = 0
) -> BoundMeter:
    """The images of each part together, in that order."""
    chosen = ImageSet(len(x), lambda index: (x[index], None), "bound", seed)
    plan = estimator.plan(terms, chosen)
    meter = BoundMeter(plan, terms.timesteps)
    for part in parts or (list(range(len(x))),):
        meter.update(evaluate_draws(terms, plan, chosen, torch.tensor(part), x[part]))
    return meter


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100), st.integers(1, 5000))
def test_strata_part_the_steps(count: int, timesteps: int) -> None:
    edges = log_strata(timesteps, count)
    assert (edges[0].item(), edges[-1].item()) == (1, timesteps + 1)
    assert bool((edges.diff() >= 1).all())
    assert len(edges) - 1 == (min(count, timesteps) if count > 1 else 1)
    if count > 1:
        assert edges[1] == 2  # the decoder's step is a stratum of its own
    if timesteps <= count:
        assert bool((edges.diff() == 1).all())


@pytest.mark.parametrize(
    ("timesteps", "edges"),  # the third is 2 √3, 2 √5.5, 2 √500.5, 2 ∜3.5
    [(5, [1, 2, 3, 6]), (10, [1, 2, 5, 11]), (1000, [1, 2, 45, 1001]), (6, [1, 2, 3, 4, 5, 7])],
)
def test_strata_are_even_in_log_t(timesteps: int, edges: list[int]) -> None:
    assert log_strata(timesteps, len(edges) - 1).tolist() == edges


def test_every_final_class_is_tested() -> None:
    assert final_classes(BoundEstimator) == {Exact, Stratified, Adaptive}


@pytest.mark.parametrize("x", [images(3), images(6).reshape(2, 3, 3, 3)], ids=["grey", "coloured"])
def test_exact_is_the_sum_of_all_terms(x: torch.Tensor) -> None:
    terms = terms_of(30)
    meter = meter_of(terms, Exact(), x)
    streams = Streams(0, "bound/bound", range(len(x)))
    streams.normal(x.shape[1:])  # the floor's
    streams.uniform((1, 30))
    noise = lambda: streams.normal(x.shape[1:]).to(x)  # noqa: E731
    bound = variational_bound(terms.denoiser, terms.chain, x, DECODER, noise, clip=1.0)
    numbers, bits = meter.compute().numbers(), bound.bits_per_dim
    assert numbers["bound"] == pytest.approx(bits.total.mean().item(), rel=1e-12)
    assert numbers["prior"] == pytest.approx(bits.prior.mean().item(), rel=1e-12)
    assert numbers["decoder"] == pytest.approx(bits.decoder.mean().item(), rel=1e-12)
    assert numbers["bound_image_se"] == pytest.approx(bits.total.std().item() / math.sqrt(len(x)), rel=1e-9)
    assert meter.plan.pilot_evaluations == 0
    assert math.isnan(numbers["bound_mc_se"])  # one draw each tells nothing of its own error


def test_stratified_is_unbiased_and_knows_its_error() -> None:
    """400 repetitions of a bound of 8 images, against 40 of the exact sum; and the errors it states."""
    terms, x = terms_of(60), images(8)

    def repeat(estimator: BoundEstimator, count: int, *names: str) -> tuple[torch.Tensor, ...]:
        found = [meter_of(terms, estimator, x, seed=seed).compute().numbers() for seed in range(count)]
        return tuple(torch.tensor([numbers[name] for numbers in found], dtype=torch.float64) for name in names)

    estimated, stated, low, high, over_images = repeat(
        Stratified(8), 400, "bound", "bound_mc_se", "bound_low", "bound_high", "bound_image_se"
    )
    exact, spread = repeat(Exact(), 40, "bound", "bound_image_se")
    error = math.sqrt(estimated.var().item() / 400 + exact.var().item() / 40)
    assert abs(estimated.mean().item() - exact.mean().item()) < 3.5 * error
    # the variance over 400 repetitions is known to a tenth; five of its standard deviations
    ratio = (stated**2).mean().item() / estimated.var().item()
    assert 0.65 < ratio < 1.5
    assert ((low <= exact.mean()) & (exact.mean() <= high)).double().mean().item() == pytest.approx(0.95, abs=0.035)
    # the images' own error, apart from the draws'
    lost_as_0 = over_images.nan_to_num(0)
    assert (lost_as_0**2).mean().sqrt().item() == pytest.approx((spread**2).mean().sqrt().item(), rel=0.25)


@pytest.mark.parametrize("estimator", [Stratified(8), Adaptive(0.05)], ids=["stratified", "adaptive"])
def test_batches_and_ranks_add_up(estimator: BoundEstimator) -> None:
    terms, x = terms_of(40), images(6)
    whole = meter_of(terms, estimator, x).compute()
    split = meter_of(terms, estimator, x, [3, 1], [0, 2, 4, 5])
    ranks = meter_of(terms, estimator, x, [0, 2, 4])
    ranks.merge_state(meter_of(terms, estimator, x, [1, 3, 5]))
    for other in (split.compute(), ranks.compute()):
        assert other.images == 6
        assert other.numbers() == pytest.approx(whole.numbers(), rel=1e-11, nan_ok=True)
        for one, same in zip(other.curve(), whole.curve(), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-9, atol=1e-12)


def test_curve_is_the_mean_of_each_bin() -> None:
    """Exactly, for the exact estimator: bits and denoising errors, step by step, joined where draws are few."""
    terms, x = terms_of(30), images(80)
    bound = meter_of(terms, Exact(), x).compute()
    curve = bound.curve()
    assert curve.edges.tolist() == list(range(1, 32))
    numbers = bound.numbers()
    assert curve.bits[0].item() == pytest.approx(numbers["decoder"], rel=1e-12)
    assert curve.bits[1:].sum().item() == pytest.approx(numbers["steps"], rel=1e-12)
    some = meter_of(terms, Exact(), x[:20]).compute()
    few = some.curve()
    assert few.edges.tolist() == [1, 2, *range(6, 30, 4), 31]  # 64 draws of 20 images take four steps
    assert (few.bits * few.edges.diff()).sum().item() == pytest.approx(
        some.numbers()["bound"] - numbers_prior(terms, x[:20]), rel=1e-9
    )
    # the error of the denoiser itself, at one step
    chosen = ImageSet(80, lambda index: (x[index], None), "bound")
    draws = evaluate_draws(terms, Exact().plan(terms, chosen), chosen, torch.arange(80), x)
    at_ten = draws.error[draws.places.step == 10]
    assert curve.error[9].item() == pytest.approx(at_ten.mean().item(), rel=1e-12)
    assert curve.stderr[9].item() == pytest.approx(
        (draws.nats[draws.places.step == 10] / draws.dims / math.log(2)).std().item() / math.sqrt(80), rel=1e-9
    )


def numbers_prior(terms: ModelTerms, x: torch.Tensor) -> float:
    return float(terms.prior(x).mean()) / x[0].numel() / math.log(2)


def test_floor_is_what_a_network_that_knows_the_image_pays() -> None:
    """A model that is told x reaches it; the default's never goes below."""
    x = images(16)
    schedule = LinearBeta(1000)
    chain = Chain.uniform(schedule, 1000)

    class Told(Crooked):
        def forward(self, x_t, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            return x

    told = ModelTerms(denoiser_of(Told(), schedule, CleanImage()), chain, DiscretizedGaussian(256))
    other = ModelTerms(denoiser_of(Crooked(), schedule, CleanImage()), chain, DiscretizedGaussian(256))
    grid = (x * 127.5).round() / 127.5  # of 256 levels
    x = (2 * ((grid + 1) * 127.5).round() / 255 - 1).double()
    noise, first = torch.zeros_like(x), torch.ones(16, dtype=torch.long)
    floor = told.floor(x, noise)
    torch.testing.assert_close(told.at(x, first, noise).nats, floor, rtol=1e-9, atol=1e-9)
    assert bool((other.at(x, first, noise).nats > floor).all())
    inside = x.abs().flatten(1).amax(1) < 1  # reference.md's 1.31 bits/dim holds for interior pixels
    if bool(inside.any()):
        assert float(floor[inside].mean()) / x[0].numel() / math.log(2) == pytest.approx(1.31, abs=0.01)


def test_difference_is_the_difference() -> None:
    """Pairing shares images, steps and noise: of a model and itself nothing is left, not even an error."""
    first, x = terms_of(40), images(6)
    second = terms_of(40, clip=None)
    paired = meter_of(Difference(first, second), Stratified(8), x).compute().numbers()  # type: ignore[arg-type]
    apart = [meter_of(terms, Stratified(8), x).compute().numbers()["bound"] for terms in (first, second)]
    assert paired["bound"] == pytest.approx(apart[0] - apart[1], rel=1e-9)
    same = meter_of(Difference(first, first), Adaptive(0.01), x).compute().numbers()  # type: ignore[arg-type]
    assert (same["bound"], same["bound_mc_se"]) == (0, 0)
    with pytest.raises(ValueError, match="40 and of 30 steps"):
        Difference(first, terms_of(30))


def drawn(plan: BoundPlan, streams: Streams, nats: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> BoundDraws:
    """The draws of a plan for all images of some streams, of one dimension; nats: (rows, steps) -> terms."""
    count = len(streams.uniform((1,)))
    places = plan.places(torch.arange(count), streams)
    zeros = torch.zeros(count, dtype=torch.float64)
    found = nats(places.row, places.step)
    return BoundDraws(zeros, zeros, zeros, places, found, torch.zeros_like(found), 1)


def test_error_of_the_curve_is_that_of_a_bin_whose_number_of_draws_is_random() -> None:
    """L_t = 10/t (1 + .5 ε) in strata of many steps, cut into finer bins: 100 repetitions, and what each states."""
    timesteps, count = 1000, 1000
    plan = Stratified(32).plan(terms_of(timesteps), ImageSet(count, lambda index: (index, None), ""))
    bits, stated = [], []
    for seed in range(100):
        noise = torch.from_numpy(generator(seed, "noise").standard_normal(count * 32))
        meter = BoundMeter(plan, timesteps)
        meter.update(drawn(plan, Streams(seed, "", range(count)), lambda row, t: 10 / t * (1 + 0.5 * noise)))  # noqa: B023
        curve = meter.compute().curve()
        bits.append(curve.bits)
        stated.append(curve.stderr)
    spread = torch.stack(bits).std(0)
    ratio = torch.stack(stated).square().mean(0).sqrt() / spread
    assert len(ratio) > 20
    assert ratio[0].item() == pytest.approx(1, abs=0.15)  # a stratum of one step: every draw hits it
    assert ratio.median().item() == pytest.approx(1, abs=0.1)
    assert ratio.min().item() > 0.8
    assert ratio.max().item() < 1.6  # a bin that ends amid a stratum is given the larger error


@pytest.mark.parametrize(("count", "scale"), [(8, 2.0), (3, 1.0)])
def test_interval_covers_where_images_are_not_equally_noisy(count: int, scale: float) -> None:
    """Image i's terms have the standard deviation e^(scale · N(0, 1)), another in every of 2,000 repetitions."""
    plan = StrataPlan(torch.tensor([1, 2]), 2, count)
    covered = []
    for seed in range(2000):
        random = generator(seed, "terms")
        deviation = torch.from_numpy(random.standard_normal(count) * scale).exp()
        noise = torch.from_numpy(random.standard_normal(2 * count))
        meter = BoundMeter(plan, 1)
        meter.update(drawn(plan, Streams(seed, "", range(count)), lambda row, t: 5 + deviation[row] * noise))  # noqa: B023
        numbers = meter.compute().numbers()
        covered.append(numbers["bound_low"] <= 5 / math.log(2) <= numbers["bound_high"])
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.02)


def test_images_without_a_draw_are_images_all_the_same() -> None:
    """A few draws over many images, in batches of one: most get none."""
    terms, x, estimator = terms_of(40), images(200), Adaptive(3.0, pilot_images=4, pilot_times=4)
    whole = meter_of(terms, estimator, x).compute()
    single = meter_of(terms, estimator, x, *([i] for i in range(200))).compute()
    assert whole.plan.evaluations - whole.plan.pilot_evaluations < 100
    assert single.numbers() == pytest.approx(whole.numbers(), rel=1e-11, nan_ok=True)


def test_a_spread_of_images_lost_in_the_noise_is_not_zero() -> None:
    plan = StrataPlan(torch.tensor([1, 2]), 2, 4)
    loud = torch.tensor([1.0, -1.1, 2.0, -2.0, 1.5, -1.4, 3.0, -3.1], dtype=torch.float64)
    for noise, error in ((loud, math.nan), (torch.zeros(8, dtype=torch.float64), 0.0)):
        meter = BoundMeter(plan, 1)
        meter.update(drawn(plan, Streams(0, "", range(4)), lambda row, t: 5 + noise))  # noqa: B023
        numbers = meter.compute().numbers()
        assert numbers["bound_image_se"] == pytest.approx(error, nan_ok=True)
        assert numbers["bound_population_low"] == pytest.approx(numbers["bound_low"])


def test_what_cannot_be_told_is_not_a_number() -> None:
    numbers = meter_of(terms_of(40), Stratified(8), images(1)).compute().numbers()
    assert math.isnan(numbers["bound_image_se"])
    assert numbers["bound_population_high"] == pytest.approx(numbers["bound_high"], rel=1e-12)
    with pytest.raises(ValueError, match="seen no image"):
        BoundMeter(Exact().plan(terms_of(4), ImageSet(1, lambda index: (index, None), "")), 4).compute()


def test_evaluations_are_counted_as_they_are_made() -> None:
    calls = []

    class Counted(Crooked):
        def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            calls.append(len(x))
            return super().forward(x, noise_label, class_label)

    for estimator, timesteps in ((Stratified(16), 100), (Stratified(64), 20), (Exact(), 30), (Adaptive(0.1), 50)):
        calls.clear()
        meter = meter_of(terms_of(timesteps, Counted()), estimator, images(3))
        assert sum(calls) == meter.plan.evaluations


@pytest.mark.parametrize("options", [{"times": 7}, {"times": 2}, {"clip": 0.0}])
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Stratified(**options)  # type: ignore[arg-type]
