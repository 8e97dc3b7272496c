"""The discretized Gaussian is a distribution over the grey levels, exact far into its tails."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.likelihood.decoders import (
    Decoder,
    DiscretizedGaussian,
    PlainGaussian,
    SoftmaxGaussian,
    TanhDiscretizedGaussian,
)
from noising.diffusion.schedules import Cosine
from tests.diffusion.helpers import final_classes, images, normals
from tests.reference import ddpm

LEVEL = Cosine(1000)(torch.tensor([0.02]))


def reverse(mean: Tensor, log_variance: float) -> Gaussian:
    return Gaussian(mean, torch.tensor(log_variance, dtype=torch.float64))


def test_every_final_class_is_tested() -> None:
    assert final_classes(Decoder) == {DiscretizedGaussian, TanhDiscretizedGaussian, SoftmaxGaussian, PlainGaussian}


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("decoder", [DiscretizedGaussian, TanhDiscretizedGaussian])
def test_probabilities_of_all_levels_sum_to_one(
    decoder: type[DiscretizedGaussian | TanhDiscretizedGaussian], levels: int
) -> None:
    """Both outer bins are open, wherever the mean lies: the tanh form's masses are no less than 1e-12."""
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for mean in (-1.3, -1.0, 0.0371, 0.98):
        for log_variance in (-9.0, -4.0, 0.5):
            step = reverse(torch.full_like(grid, mean), log_variance)
            log_prob = decoder(levels).log_prob(grid, step, grid, LEVEL)
            floor = 0.0 if decoder is DiscretizedGaussian else levels * 1e-12
            assert log_prob.logsumexp(0).item() == pytest.approx(0, abs=1e-12 + floor)


@pytest.mark.parametrize("levels", [17, 256])
def test_is_the_reference_into_the_tails(levels: int) -> None:
    x, mean = images(64, levels), 1.2 * normals(64, 1, 3, 3).tanh()
    for log_variance in (-11.0, -6.0, 0.0):
        ours = DiscretizedGaussian(levels).log_prob(x, reverse(mean, log_variance), x, LEVEL)
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
            ours = DiscretizedGaussian(levels).log_prob(pixel, reverse(at, log_variance), pixel, LEVEL)
            assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_float32_images_lose_only_their_own_rounding() -> None:
    x, mean = images(64, 256), 0.9 * images(64, 256, seed=1)
    log_variance = torch.tensor(-8.0, dtype=torch.float64)
    decoder = DiscretizedGaussian(256)
    double = decoder.log_prob(x, Gaussian(mean, log_variance), x, LEVEL)
    single = decoder.log_prob(x.float(), Gaussian(mean.float(), log_variance), x.float(), LEVEL)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-4)


def test_one_level_is_no_distribution() -> None:
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        DiscretizedGaussian(1)


def tanh_cdf(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


@pytest.mark.parametrize("log_variance", [-9.0, -4.0])
def test_tanh_form_is_the_references(log_variance: float) -> None:
    """Edges by x < −0.999 and x > 0.999, masses no less than 1e-12."""
    x, mean = images(64, 256), 1.1 * normals(64, 1, 3, 3).tanh()
    x[0, 0, 0] = torch.tensor([-1.0, 1.0, 0.2])
    centred, rate = (x - mean).numpy(), math.exp(-log_variance / 2)
    below, above = tanh_cdf((centred - 1 / 255) * rate), tanh_cdf((centred + 1 / 255) * rate)
    log_low, log_high, log_mid = (np.log(np.maximum(p, 1e-12)) for p in (above, 1 - below, above - below))
    expected = np.where(x.numpy() < -0.999, log_low, np.where(x.numpy() > 0.999, log_high, log_mid))
    ours = TanhDiscretizedGaussian(256).log_prob(x, reverse(mean, log_variance), x, LEVEL)
    # masses near 1e-12 are differences of numbers near 1
    np.testing.assert_allclose(ours.numpy(), expected.sum((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(("z", "ratio"), [(-3.0, 0.90), (-4.0, 0.55), (-5.0, 0.16)])
def test_tanh_form_is_thin_in_the_tail(z: float, ratio: float) -> None:
    """The lowest bin's mass, at z standard deviations from the mean, against the exact one."""
    x, mean = torch.full((1, 1, 1, 1), -1.0, dtype=torch.float64), torch.tensor([[[[-1 + 1 / 255 - z * 0.5]]]]).double()
    step = reverse(mean, 2 * math.log(0.5))
    approximate = TanhDiscretizedGaussian(256).log_prob(x, step, x, LEVEL).exp().item()
    exact = DiscretizedGaussian(256).log_prob(x, step, x, LEVEL).exp().item()
    assert approximate / exact == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("std", [0.02, 0.1, 0.5])
def test_tanh_form_is_the_exact_one_near_the_mean(std: float) -> None:
    """The distribution function off by 1.8e-4 and no more; a bin's mass within a standard deviation, by 1e-3 of it."""
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(-1, 1, 1, 1)
    step = reverse(torch.full_like(grid, 0.03), 2 * math.log(std))
    approximate, exact = (
        kind(256).log_prob(grid, step, grid, LEVEL) for kind in (TanhDiscretizedGaussian, DiscretizedGaussian)
    )
    near = (grid.flatten() - 0.03).abs() < std
    torch.testing.assert_close(approximate[near], exact[near], rtol=0, atol=1e-3)
    below = torch.linspace(-6, 6, 2401, dtype=torch.float64).reshape(-1, 1, 1, 1)  # the lowest bin, edge at −z
    step = reverse(-1 + 1 / 255 - below * std, 2 * math.log(std))
    pixel = torch.full_like(below, -1)
    mine, theirs = (
        kind(256).log_prob(pixel, step, pixel, LEVEL).exp() for kind in (TanhDiscretizedGaussian, DiscretizedGaussian)
    )
    assert float((mine - theirs).abs().max()) == pytest.approx(1.8e-4, abs=1e-5)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_softmax_is_bayes_rule_over_the_levels(levels: int) -> None:
    values, x_1 = np.linspace(-1, 1, levels), 1.5 * normals(1, 1, 2, 3)
    alpha, sigma = LEVEL.alpha.item(), LEVEL.sigma.item()
    log_joint = norm.logpdf(x_1.numpy()[..., None], alpha * values, sigma)
    expected = (log_joint - logsumexp(log_joint, -1, keepdims=True)).sum((0, 1, 2, 3))
    grid = torch.from_numpy(values).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    step = reverse(torch.zeros_like(grid), 0.0)
    ours = SoftmaxGaussian(levels).log_prob(grid, step, x_1.expand_as(grid), LEVEL)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-8)


def test_plain_gaussian_is_the_density() -> None:
    x, mean = normals(4, 1, 2, 2), normals(4, 1, 2, 2, seed=1)
    expected = norm.logpdf(x.numpy(), mean.numpy(), math.exp(-1.0)).sum((1, 2, 3))
    ours = PlainGaussian().log_prob(x, reverse(mean, -2.0), x, LEVEL)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
