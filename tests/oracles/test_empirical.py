"""The empirical distribution: its denoiser is the mean of the images by likelihood, its bound log2(N)/D from above."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from noising.diffusion.likelihood.decoders import PlainGaussian
from noising.diffusion.likelihood.terms import ModelTerms, prior_term
from noising.diffusion.parameterizations import Epsilon
from noising.diffusion.schedules import Cosine, LinearBeta
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, ReverseVariance
from noising.oracles.empirical import Empirical
from noising.oracles.oracle import oracle_denoiser
from tests.diffusion.helpers import normals


def rate(chain: Chain, variance: ReverseVariance, images: Tensor, draws: int = 1) -> tuple[float, float]:
    """L_T + Σ_{t≥2} L_t of the memorized images, bits/dim, and its standard error over images and noise."""
    denoiser = oracle_denoiser(Empirical(images), chain.schedule, Epsilon(), variance)
    x = images.repeat(draws, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    total = prior_term(chain, x)
    for step in range(2, len(chain) + 1):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        total += ModelTerms(denoiser, chain, PlainGaussian()).at(x, torch.full((len(x),), step), noise).nats
    bits = total / (x[0].numel() * math.log(2))
    return float(bits.mean()), float(bits.std()) / math.sqrt(len(bits))


def test_denoiser_is_the_mean_by_likelihood() -> None:
    images, level = normals(5, 1, 2, 2), Cosine(1000)(torch.tensor([0.35]))
    x_t = normals(3, 1, 2, 2, seed=1)
    rows, seen = images.flatten(1).numpy(), x_t.flatten(1).numpy()
    distance = ((seen[:, None] - level.alpha.item() * rows) ** 2).sum(-1)
    likelihood = np.exp(-distance / (2 * level.sigma.item() ** 2))
    expected = (likelihood @ rows) / likelihood.sum(1, keepdims=True)
    np.testing.assert_allclose(Empirical(images).clean(x_t, level).flatten(1).numpy(), expected, rtol=1e-10)


def test_bound_falls_to_the_entropy_with_an_excess_that_halves() -> None:
    images = normals(32, 1, 3, 3).clamp(-1, 1)
    truth = math.log2(32) / 9
    assert Empirical(images).entropy / math.log(2) == pytest.approx(truth)
    results = [
        rate(Chain.uniform(LinearBeta(1000), T), FixedSmall(), images, draws) for T, draws in ((50, 300), (200, 100))
    ]
    (coarse, coarse_error), (fine, fine_error) = ((value - truth, error) for value, error in results)
    assert coarse > 5 * coarse_error  # from above
    assert fine > 5 * fine_error
    assert coarse / fine == pytest.approx(4, rel=0.15)  # 1/T


def test_two_equal_images_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Empirical(torch.zeros(2, 1, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chain", "variance", "expected", "tolerance"),
    [
        (Chain.uniform(LinearBeta(100), 100), FixedSmall(), 0.180, 1e-3),
        (Chain.uniform(LinearBeta(1000), 1000), FixedSmall(), 0.16978, 2e-4),
        (Chain.uniform(Cosine(1000), 1000), FixedSmall(), 0.16939, 2e-4),
        (Chain.uniform(LinearBeta(1000), 1000), FixedLarge(), 0.656, 1e-3),
    ],
    ids=["linear-100", "linear-1000", "cosine-1000", "linear-1000-large"],
)
def test_memorized_digits(chain: Chain, variance: ReverseVariance, expected: float, tolerance: float) -> None:
    images = torch.from_numpy(load_digits().images).unsqueeze(1) / 8 - 1
    value, error = rate(chain, variance, images)
    print(f"{value:.5f} ± {error:.5f}")
    assert value == pytest.approx(expected, abs=tolerance + 2 * error)
    assert value > math.log2(1797) / 64 - 2 * error
