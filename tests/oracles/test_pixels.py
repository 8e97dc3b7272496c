"""The oracles know what they say they know: E[x | x_t], its error and the entropy, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from noising.diffusion.levels import NoiseLevel
from noising.diffusion.schedules import Cosine, LinearLogSNR, RectifiedFlow, Schedule
from noising.oracles.pixels import PixelMixture, gaussian, grey_levels
from tests.diffusion.helpers import normals

WEIGHTS, MEANS, STDS = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-0.6, 0.5], [0.1, 0.3]))
MIXTURE = PixelMixture(WEIGHTS, MEANS, STDS)
GREYS = torch.softmax(torch.linspace(0, 3, 9, dtype=torch.float64), 0)


def level_at(schedule: Schedule, t: float) -> NoiseLevel:
    return schedule(torch.tensor([t], dtype=torch.float64))


def by_quadrature(x_t: float, level: NoiseLevel) -> float:
    """E[x | x_t] of the mixture, by integrating over x."""
    alpha, sigma = level.alpha.item(), level.sigma.item()

    def joint(x: float) -> float:
        prior = sum(w * norm.pdf(x, m, s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))
        return float(prior * norm.pdf(x_t, alpha * x, sigma))

    points = [*MEANS.tolist(), x_t / alpha if alpha else 0.0]
    (top, _), (bottom, _) = (
        quad(f, -4, 4, points=points, epsabs=1e-14, limit=300) for f in (lambda x: x * joint(x), joint)
    )
    return top / bottom


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("schedule", [Cosine(1000), RectifiedFlow()], ids=["cosine", "straight"])
def test_mixture_denoiser_is_the_integral_over_clean_images(schedule: Schedule, t: float) -> None:
    level = level_at(schedule, t)
    x_t = torch.tensor([-0.8, -0.1, 0.4], dtype=torch.float64).reshape(1, 1, 1, 3)
    expected = [by_quadrature(value, level) for value in x_t.flatten().tolist()]
    assert MIXTURE.clean(x_t, level).flatten().tolist() == pytest.approx(expected, rel=1e-7)


def test_grey_level_denoiser_is_bayes_rule() -> None:
    level = level_at(Cosine(1000), 0.3)
    x_t = np.linspace(-1.5, 1.5, 7)
    values = np.linspace(-1, 1, 9)
    joint = GREYS.numpy() * norm.pdf(x_t[:, None], level.alpha.item() * values, level.sigma.item())
    expected = (joint * values).sum(1) / joint.sum(1)
    ours = grey_levels(GREYS).clean(torch.from_numpy(x_t).reshape(1, 1, 1, 7), level)
    np.testing.assert_allclose(ours.flatten().numpy(), expected, rtol=1e-12)


def test_gaussian_denoiser_is_the_linear_one() -> None:
    level = level_at(RectifiedFlow(), 0.6)
    x_t = normals(2, 1, 2, 2)
    gain = 0.4 * 0.25 / (0.16 * 0.25 + 0.36)
    torch.testing.assert_close(gaussian(0.5, 0.2).clean(x_t, level), 0.2 + gain * (x_t - 0.08), rtol=1e-12, atol=0)


@pytest.mark.parametrize("oracle", [gaussian(0.5), MIXTURE, grey_levels(GREYS)], ids=["gaussian", "mixture", "greys"])
@pytest.mark.parametrize("t", [0.02, 0.3, 0.8])
def test_error_is_what_is_measured(oracle: PixelMixture, t: float) -> None:
    level, count = level_at(Cosine(1000), t), 400_000
    generator = torch.Generator().manual_seed(1)
    component = torch.multinomial(oracle.weights.reshape(-1), count, replacement=True, generator=generator)
    spread = torch.randn(count, generator=generator, dtype=torch.float64)
    x = (oracle.means.reshape(-1)[component] + oracle.stds.reshape(-1)[component] * spread).reshape(1, 1, 1, -1)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    square = (oracle.clean(level.perturb(x, noise), level) - x).square()
    error = float(square.std()) / math.sqrt(count)
    assert float(oracle.error(level)) == pytest.approx(float(square.mean()), abs=4 * error)


def test_entropies_against_closed_forms_and_the_limit_of_separate_parts() -> None:
    assert gaussian(0.5).entropy / math.log(2) == pytest.approx(1.04710, abs=5e-6)
    assert grey_levels(torch.full((256,), 1 / 256, dtype=torch.float64)).entropy == pytest.approx(math.log(256))
    narrow = PixelMixture(WEIGHTS, MEANS, STDS / 100)  # parts so far apart: their entropy and that of the choice
    parts = 0.5 * math.log(2 * math.pi * math.e) + (STDS / 100).log()
    assert narrow.entropy == pytest.approx(float((WEIGHTS * (parts - WEIGHTS.log())).sum()), abs=1e-9)
    assert PixelMixture(WEIGHTS, MEANS * 0, STDS * 0 + 0.5).entropy == pytest.approx(gaussian(0.5).entropy, abs=1e-9)


def test_pixels_may_differ() -> None:
    probabilities = torch.softmax(normals(1, 2, 2, 9), -1)
    whole, level, x_t = grey_levels(probabilities), level_at(LinearLogSNR(), 0.6), normals(3, 1, 2, 2, seed=1)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        alone = grey_levels(probabilities[0, row, column])
        one = x_t[:, :, row : row + 1, column : column + 1]
        torch.testing.assert_close(whole.clean(x_t, level)[:, :, row, column], alone.clean(one, level)[:, :, 0, 0])
    single = [grey_levels(p).entropy for p in probabilities.reshape(4, 9)]
    assert whole.entropy == pytest.approx(sum(single) / 4)
    errors = [float(grey_levels(p).error(level)) for p in probabilities.reshape(4, 9)]
    assert float(whole.error(level)) == pytest.approx(sum(errors) / 4, rel=1e-9)


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        grey_levels(torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match="all positive or all zero"):
        PixelMixture(WEIGHTS, MEANS, torch.tensor([0.0, 0.1]))
