"""From sums to numbers: the errors of a plan that shares its draws among images, by the textbook's formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from noising.diffusion.likelihood.estimators import BoundDraws, BoundPlan, DrawIndex, log_strata
from noising.diffusion.likelihood.meter import BINS, BoundEstimate, BoundMeter, _Error
from noising.diffusion.likelihood.pilot import ImageSpread, VarianceEstimate
from noising.randomness import Streams


class Shared(BoundPlan):
    """Draws of R replicates over all images together, as the adaptive plan has them."""

    by_image, even = False, False
    evaluations = 100

    def __init__(self, replicates: int, spread: ImageSpread | None = None) -> None:
        self.replicates, self.image_spread = replicates, spread

    def places(self, index: torch.Tensor, streams: Streams) -> DrawIndex:
        raise NotImplementedError


IMAGES = 7
SUMS = torch.tensor([[20.0, 3.0], [23.0, 2.0], [19.0, 4.0], [22.0, 3.5], [21.0, 2.5]], dtype=torch.float64)
"""Of the steps and the decoder over the images, in five replicates."""


def estimate(plan: BoundPlan, sums: torch.Tensor = SUMS, bounds: torch.Tensor | None = None) -> dict[str, float]:
    """bounds: of each image, where the plan compares images by their draws."""
    moments = torch.zeros(11, dtype=torch.float64)
    moments[:3] = torch.tensor([IMAGES, 0.7, 0.35])
    moments[7] = math.nan
    if bounds is not None:
        moments[0], moments[3], moments[4] = len(bounds), bounds.sum(), bounds.square().sum()
    edges = torch.tensor([1, 2, 11])
    return BoundEstimate(plan, 10, edges, moments, sums, torch.zeros(4, 2, dtype=torch.float64)).numbers()


def test_replicates_tell_the_error_of_each_part() -> None:
    numbers = estimate(Shared(5))
    parts = {"steps": SUMS[:, 0], "decoder": SUMS[:, 1], "bound": SUMS.sum(1)}
    for name, values in parts.items():
        mean = float(values.mean()) / IMAGES + (0.1 if name == "bound" else 0)
        assert numbers[name] == pytest.approx(mean)
        assert numbers[f"{name}_mc_se"] == pytest.approx(float(values.std()) / IMAGES / math.sqrt(5))
    half = student.ppf(0.975, 4) * numbers["bound_mc_se"]
    assert (numbers["bound_low"], numbers["bound_high"]) == pytest.approx(
        (numbers["bound"] - half, numbers["bound"] + half)
    )
    assert (numbers["prior"], numbers["decoder_floor"]) == pytest.approx((0.1, 0.05))
    assert math.isnan(numbers["bound_image_se"])  # no pilot, and no image with as many draws as another
    assert numbers["bound_population_low"] == numbers["bound_low"]


def test_a_pilots_spread_is_the_error_over_images() -> None:
    """Added to the replicates' by Welch and Satterthwaite."""
    numbers = estimate(Shared(5, ImageSpread(0.28, 0.5, 31)))
    mc, images = numbers["bound_mc_se"], math.sqrt(0.28 / IMAGES)
    assert numbers["bound_image_se"] == pytest.approx(images)
    variance = mc**2 + images**2
    half = student.ppf(0.975, variance**2 / (mc**4 / 4 + images**4 / 31)) * math.sqrt(variance)
    assert numbers["bound_population_high"] - numbers["bound"] == pytest.approx(half)
    assert numbers["bound"] - numbers["bound_population_low"] == pytest.approx(half)


def test_a_spread_that_is_lost_in_the_draws_is_not_resolved() -> None:
    assert math.isnan(estimate(Shared(5, ImageSpread(0.0, 0.5, 31)))["bound_image_se"])
    assert estimate(Shared(5, ImageSpread(0.0, 0.0, 31)))["bound_image_se"] == 0


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_images_with_equally_many_draws_are_compared_by_them(noise: float) -> None:
    """Their variance, less what the noise of the mean over all of them makes of each; n − 1 degrees of freedom."""
    bounds = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    plan = Shared(5)
    plan.even = True
    if noise:
        plan.noise = VarianceEstimate(noise / 2, 9), VarianceEstimate(noise / 2, 9), VarianceEstimate(noise, 9)
    numbers = estimate(plan, bounds=bounds)
    spread = (38 / 3 - 4 * noise) / 4
    assert numbers["bound_image_se"] == pytest.approx(math.sqrt(spread))
    mc, freedom = numbers["bound_mc_se"], 9 if noise else 4
    half = student.ppf(0.975, (mc**2 + spread) ** 2 / (mc**4 / freedom + spread**2 / 3)) * math.hypot(mc, spread**0.5)
    assert numbers["bound_population_high"] - numbers["bound"] == pytest.approx(half)
    assert math.isnan(estimate(plan, bounds=bounds[:1])["bound_image_se"])
    # of a pilot and the draws themselves, what is more certain
    plan.image_spread = ImageSpread(1.0, 1.0, 1000)
    assert estimate(plan, bounds=bounds)["bound_image_se"] == pytest.approx(math.sqrt(1 / 4))
    plan.image_spread = ImageSpread(1.0, 100.0, 10)
    assert estimate(plan, bounds=bounds)["bound_image_se"] == pytest.approx(math.sqrt(spread))


def test_the_surer_spread_is_that_of_the_least_relative_variance_of_its_estimate() -> None:
    """raw² over the degrees of freedom, not raw, nor raw³."""
    bounds = torch.tensor([0.0, 1.0], dtype=torch.float64)  # raw ½, one degree of freedom
    plan = Shared(5)
    plan.even = True
    for raw, freedom, chosen in ((0.6, 2, True), (0.9, 2, False), (1.5, 8, False), (0.2, 0.1, False), (0.1, 0.1, True)):
        plan.image_spread = ImageSpread(0.05, raw, freedom)  # type: ignore[arg-type]
        found = estimate(plan, bounds=bounds)["bound_image_se"]
        assert found == pytest.approx(math.sqrt((0.05 if chosen else 0.5) / 2)), (raw, freedom)


EDGES = torch.tensor([1, 2, 4, 8, 11])


@pytest.mark.parametrize(
    ("counts", "edges"),
    [
        ([100, 100, 100, 70], [1, 2, 4, 8, 11]),
        ([100, 100, 10, 20], [1, 2, 11]),  # what is left goes to the last bin
        ([100, 10, 20, 30], [1, 2, 11]),  # but never to the decoder's
        ([100, 100, 10, 90], [1, 2, 4, 11]),
        ([100, 64, 63, 0], [1, 2, 11]),
        ([100, 64, 64, 5], [1, 2, 4, 11]),
        ([5, 1, 0, 0], [1, 2, 11]),
        ([5, 2, 0, 0], [1, 2, 11]),
    ],
)
@pytest.mark.parametrize("strata", [None, [1, 2, 3, 6, 11]])
def test_a_curve_merges_bins_of_few_draws(counts: list[int], edges: list[int], strata: list[int] | None) -> None:
    """Sums of made-up draws; the mean and its error by the textbook, over the draws that might have come."""
    random = np.random.default_rng(0)
    draws = [random.exponential(1000.0, count) for count in counts]
    errors = [random.random(count) for count in counts]
    sums = [[len(d), d.sum(), (d**2).sum(), e.sum()] for d, e in zip(draws, errors, strict=True)]
    plan = Shared(3)
    plan.strata = None if strata is None else torch.tensor(strata)
    moments = torch.zeros(11, dtype=torch.float64)
    moments[0] = IMAGES
    bins = torch.tensor(sums, dtype=torch.float64).T
    curve = BoundEstimate(plan, 10, EDGES, moments, torch.zeros(3, 2, dtype=torch.float64), bins).curve()
    assert curve.edges.tolist() == edges
    places = [EDGES.tolist().index(edge) for edge in edges]
    for number, (first, last) in enumerate(itertools.pairwise(places)):
        values, width = np.concatenate(draws[first:last]), edges[number + 1] - edges[number]
        tried = len(values)
        if strata is not None:
            inside = [a < edges[number + 1] and b > edges[number] for a, b in itertools.pairwise(strata)]
            tried = 3 * IMAGES * sum(inside)
        squares = max((values**2).sum() - values.sum() ** 2 / tried, 0.0) * tried / max(tried - 1, 1)
        assert curve.bits[number].item() == pytest.approx(values.sum() / (3 * IMAGES) / width)
        assert curve.stderr[number].item() == pytest.approx(math.sqrt(squares) / (3 * IMAGES) / width, abs=1e-6)
        assert curve.error[number].item() == pytest.approx(np.concatenate(errors[first:last]).mean())


def test_a_chain_of_one_step_has_one_bin() -> None:
    bins = torch.tensor([[6.0], [3.0], [2.0], [1.2]], dtype=torch.float64)
    moments = torch.zeros(11, dtype=torch.float64)
    moments[0] = 2
    curve = BoundEstimate(
        Shared(3), 1, torch.tensor([1, 2]), moments, torch.zeros(3, 2, dtype=torch.float64), bins
    ).curve()
    assert curve.edges.tolist() == [1, 2]
    assert curve.bits.tolist() == pytest.approx([0.5])


def test_sums_are_those_of_the_draws() -> None:
    """Two images in two replicates, in bits/dim of three numbers each."""
    plan = Shared(2)
    meter = BoundMeter(plan, 10)
    places = DrawIndex(
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 0, 1, 0, 1, 1]),
        torch.tensor([1, 5, 5, 2, 1, 10]),
        torch.tensor([1.0, 4.0, 2.0, 3.0, 1.0, 5.0], dtype=torch.float64),
    )
    nats = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    prior, floor, off = (torch.tensor(pair, dtype=torch.float64) for pair in ([0.3, 0.6], [0.1, 0.5], [2.0, 7.0]))
    error = torch.arange(6.0, dtype=torch.float64)
    meter.update(BoundDraws(prior, floor, off, places, nats, error, 3))
    unit = 3 * math.log(2)
    steps = np.array([[8.0, 6.0], [12.0, 30.0]]) / unit  # image by replicate
    decoder = np.array([[1.0, 0.0], [0.0, 5.0]]) / unit
    means = (prior + off).numpy() / unit + (steps + decoder).mean(1)
    variances = [values.var(1, ddof=1) / 2 for values in (steps, decoder, steps + decoder)]
    expected = [2, 0.9 / unit, 0.6 / unit, means.sum(), (means**2).sum()]
    expected += [variance.sum() for variance in variances] + [(variance**2).sum() for variance in variances]
    assert meter.image_moments.tolist() == pytest.approx(expected)
    assert meter.replicate_sums.tolist() == [pytest.approx([steps[:, r].sum(), decoder[:, r].sum()]) for r in range(2)]
    edges = log_strata(10, BINS).tolist()
    bins = np.zeros((4, len(edges) - 1))
    for value, weight, step, one in zip(nats, places.weight, places.step, error, strict=True):
        bits = float(value * weight) / unit
        bins[:, np.searchsorted(edges, int(step), side="right") - 1] += (1, bits, bits**2, float(one))
    np.testing.assert_allclose(meter.bin_sums.numpy(), bins)


def test_one_replicate_tells_nothing_and_a_plan_may_know_better() -> None:
    assert math.isnan(estimate(Shared(1), SUMS[:1])["bound_mc_se"])
    known = Shared(1)
    known.noise = VarianceEstimate(0.04, 9), VarianceEstimate(0.01, 8), VarianceEstimate(0.09, 7)
    numbers = estimate(known, SUMS[:1])
    assert [numbers[f"{part}_mc_se"] for part in ("steps", "decoder", "bound")] == pytest.approx([0.2, 0.1, 0.3])
    assert numbers["bound_high"] - numbers["bound"] == pytest.approx(student.ppf(0.975, 7) * 0.3)


def test_errors_add_up_and_nothing_is_no_error() -> None:
    nothing, nan = _Error(0.0, 3), _Error(math.nan, 1)
    assert nothing.plus(_Error(0.0, 5)) == (0, 3)
    assert nan.plus(_Error(0.2, 5)) == (pytest.approx(0.2), pytest.approx(5))
    assert math.isnan(nan.plus(nan).stderr)
