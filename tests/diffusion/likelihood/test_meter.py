"""From sums to numbers: the errors of a plan that shares its draws among images, by the textbook's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import t as student

from noising.diffusion.likelihood.estimators import BoundPlan, DrawIndex
from noising.diffusion.likelihood.meter import BoundEstimate, _Error
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
