"""The discretized Gaussian is a distribution over the grey levels, exact far into its tails."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate

from noising.diffusion.decoders import DiscretizedGaussian
from noising.diffusion.gaussian import Gaussian
from tests.diffusion.conftest import images, normals
from tests.reference import ddpm


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_probabilities_of_all_levels_sum_to_one(levels: int) -> None:
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for mean in (-1.3, -1.0, 0.0371, 0.98):
        for log_variance in (-9.0, -4.0, 0.5):
            reverse = Gaussian(torch.full_like(grid, mean), torch.tensor(log_variance, dtype=torch.float64))
            log_prob = DiscretizedGaussian(levels).log_prob(grid, reverse)
            assert log_prob.logsumexp(0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("levels", [17, 256])
def test_is_the_reference_into_the_tails(levels: int) -> None:
    x, mean = images(64, levels), 1.2 * normals(64, 1, 3, 3).tanh()
    for log_variance in (-11.0, -6.0, 0.0):
        ours = DiscretizedGaussian(levels).log_prob(x, Gaussian(mean, torch.tensor(log_variance, dtype=torch.float64)))
        theirs = ddpm.discretized_gaussian(levels)(x.numpy(), mean.numpy(), np.asarray(log_variance))
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-9, atol=1e-9)


def _density_over_that_at(edge: float, z: float) -> float:
    return math.exp((edge - z) * (edge + z) / 2)


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("log_variance", [-10.0, -6.0, -2.0])
def test_is_the_integral_of_the_density(levels: int, log_variance: float) -> None:
    """The mass of the bin by quadrature, the density at its nearer edge taken out so that no tail underflows.

    The means lie up to hundreds of standard deviations away, on both sides; an outer bin ends 60 of them out.
    """
    rate, half_bin = math.exp(-log_variance / 2), 1 / (levels - 1)
    for level in (0, 1, levels // 2, levels - 2, levels - 1):
        x = 2 * level / (levels - 1) - 1
        for mean in (-1.0, -0.31, 0.04, 0.9):
            lower = (x - half_bin - mean) * rate if level > 0 else min(-60.0, (x + half_bin - mean) * rate - 60)
            upper = (x + half_bin - mean) * rate if level < levels - 1 else max(60.0, (x - half_bin - mean) * rate + 60)
            edge = 0.0 if lower < 0 < upper else min(lower, upper, key=abs)
            # the density falls by e^(-40) over 40/|edge|, or over ten standard deviations
            reach = min(10.0, 40 / abs(edge)) if edge else 10.0
            start, end = (max(lower, edge - reach), min(upper, edge + reach))
            scaled = partial(_density_over_that_at, edge)
            mass, _ = integrate.quad(scaled, start, end, epsabs=0, epsrel=1e-12, limit=200)
            expected = math.log(mass) - edge**2 / 2 - math.log(2 * math.pi) / 2
            pixel, at = torch.tensor([x, mean], dtype=torch.float64).reshape(2, 1, 1, 1, 1)
            reverse = Gaussian(at, torch.tensor(log_variance, dtype=torch.float64))
            ours = DiscretizedGaussian(levels).log_prob(pixel, reverse)
            assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_float32_images_lose_only_their_own_rounding() -> None:
    x, mean = images(64, 256), 0.9 * images(64, 256, seed=1)
    log_variance = torch.tensor(-8.0, dtype=torch.float64)
    decoder = DiscretizedGaussian(256)
    double = decoder.log_prob(x, Gaussian(mean, log_variance))
    single = decoder.log_prob(x.float(), Gaussian(mean.float(), log_variance))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-4)


def test_one_level_is_no_distribution() -> None:
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        DiscretizedGaussian(1)
