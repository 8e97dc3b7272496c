"""The Gaussian against torch's own distributions."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from noising.diffusion.gaussian import Gaussian
from tests.diffusion.helpers import normals


def test_density_divergence_and_sample_are_torchs() -> None:
    mean, other, x = (normals(4, 1, 2, 2, seed=seed) for seed in range(3))
    spread, wide = normals(4, 1, 1, 1, seed=3), normals(4, 1, 2, 2, seed=4)
    ours, theirs = Gaussian(mean, spread), Normal(mean, (spread / 2).exp())
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x).flatten(1).sum(1))
    expected = kl_divergence(theirs, Normal(other, (wide / 2).exp())).flatten(1).sum(1)
    torch.testing.assert_close(ours.kl(Gaussian(other, wide)), expected)
    torch.testing.assert_close(ours.sample(x), mean + (spread / 2).exp() * x)


def test_divergence_of_equals_is_exactly_zero_in_float32() -> None:
    mean, log_variance = normals(4, 1, 2, 2).float(), torch.tensor(-17.3, dtype=torch.float64)
    assert torch.equal(Gaussian(mean, log_variance).kl(Gaussian(mean, log_variance)), torch.zeros(4))
