"""Standard errors that split into what the draws and what the images cause, against simulated known variances."""

from __future__ import annotations

import math

import pytest
import torch

from noising.diffusion.likelihood.flow import replicated_mean
from tests.diffusion.conftest import normals


@pytest.mark.parametrize("replicates", [2, 5])
def test_errors_are_those_that_were_put_in(replicates: int) -> None:
    images, between, within = 20_000, 0.3, 0.8
    values = 2 + between * normals(images, 1) + within * normals(images, replicates, seed=1)
    found = replicated_mean(values)
    assert found.mc_se == pytest.approx(within / math.sqrt(replicates * images), rel=0.05)
    assert found.image_se == pytest.approx(between / math.sqrt(images), rel=0.1)
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.mean)
    assert (high - low) / 2 == pytest.approx(1.96 * math.hypot(found.mc_se, found.image_se), rel=1e-4)
    assert low < 2 < high


def test_images_that_do_not_differ_have_no_error() -> None:
    values = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    assert replicated_mean(values) == (1.5, math.sqrt(0.5 / 2 / 2), 0.0, 2)


def test_interval_of_few_images_covers_as_often_as_it_says() -> None:
    found = [replicated_mean(normals(4, 1, seed=i) + 0.2 * normals(4, 2, seed=1000 + i)) for i in range(1000)]
    covered = sum(low < 0 < high for low, high in (one.interval for one in found))
    assert covered == pytest.approx(950, abs=28)  # four standard errors


def test_what_cannot_be_told_is_nan() -> None:
    one_draw, one_image = replicated_mean(normals(5, 1)), replicated_mean(normals(1, 2))
    assert math.isnan(one_draw.mc_se)
    assert math.isnan(one_draw.image_se)
    assert math.isfinite(one_image.mc_se)
    assert math.isnan(one_image.image_se)
