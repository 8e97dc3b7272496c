"""Every term of the bound against the float64 reference, and the bound of Gaussian data against its closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.likelihood.decoders import DiscretizedGaussian, PlainGaussian
from noising.diffusion.likelihood.terms import Difference, ModelTerms, decoder_floor, prior_term, variational_bound
from noising.diffusion.parameterizations import CleanImage, Epsilon, Parameterization, Velocity
from noising.diffusion.schedules import LinearLogSNR, LogLinearSigma
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, LearnedRange, ReverseVariance
from tests.diffusion.helpers import (
    Crooked,
    denoiser_of,
    epsilon_of,
    gaussian_denoiser,
    images,
    in_turn,
    normals,
    pair,
)
from tests.reference import ddpm

VARIANCES = [FixedSmall(), FixedLarge()]


KINDS = (Epsilon, CleanImage, Velocity)
CASES = [
    *itertools.product([("linear", 1000), ("cosine", 1000)], VARIANCES, [False, True], KINDS),
    (("cosine", 4000), FixedSmall(), False, Epsilon),
]


@pytest.mark.parametrize(
    ("chain_of", "variance", "clip", "kind"),
    CASES,
    ids=lambda case: (
        getattr(case, "__name__", None) or (type(case).__name__ if isinstance(case, ReverseVariance) else str(case))
    ),
)
def test_every_term_is_the_references(
    chain_of: tuple[str, int], variance: ReverseVariance, clip: bool, kind: type[Parameterization]
) -> None:
    """To 1e-6 bits/dim and better."""
    chain, reference = pair(*chain_of)
    x, noise = images(2), normals(len(chain), 2, 1, 3, 3)
    model = Crooked()
    denoiser = denoiser_of(model, chain.schedule, kind(), variance)
    ours = variational_bound(denoiser, chain, x, DiscretizedGaussian(17), in_turn(noise), 1.0 if clip else None)
    log_variance = reference.fixed_small if isinstance(variance, FixedSmall) else reference.fixed_large
    reverse = ddpm.Reverse(
        epsilon_of(model, kind(), chain, clip), log_variance, ddpm.discretized_gaussian(17), clip=clip
    )
    theirs = reference.bound(x.numpy(), noise.transpose(0, 1).numpy(), reverse)
    nats = 9 * math.log(2)
    for mine, other in (
        (ours.prior, theirs.prior),
        (ours.steps, theirs.steps),
        (ours.decoder, theirs.decoder),
    ):
        torch.testing.assert_close(mine / nats, torch.from_numpy(other) / nats, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.bits_per_dim.total, torch.from_numpy(theirs.total) / nats, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "timesteps", "std", "small", "large"),
    [
        ("linear", 1000, 0.5, (-4.43312, 6.30244, 1.86932), 1.21253),
        ("linear", 1000, 1.0, (-4.43272, 7.31452, 2.88183), 2.21113),
        ("cosine", 1000, 0.5, (-5.05070, 6.86241, 1.81171), 1.23230),
        ("cosine", 4000, 0.5, (-6.05685, 7.78749, 1.73064), 1.25795),
    ],
)
def test_gaussian_data_has_the_closed_form(
    name: str, timesteps: int, std: float, small: tuple[float, float, float], large: float
) -> None:
    """L_0, Σ L_t and the total for the fixed variances, to five digits, by quadrature over the noise.

    Each term is a quadratic in (x, ε), so that four points stand for its average exactly: x and ε at ± their standard
    deviations.
    """
    chain, reference = pair(name, timesteps)
    x = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1) * std
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    for variance, expected in ((FixedSmall(), small), (FixedLarge(), (None, None, large))):
        denoiser = gaussian_denoiser(std, chain.schedule, variance=variance)
        bound = variational_bound(denoiser, chain, x, PlainGaussian(), lambda: noise).bits_per_dim
        measured = (bound.decoder.mean(), bound.steps.sum(1).mean(), bound.total.mean())
        for value, published in zip(measured, expected, strict=True):
            assert published is None or value.item() == pytest.approx(published, abs=6e-6)
    closed = ddpm.GaussianData(reference, std).bound(reference.fixed_large)
    assert bound.total.mean().item() == pytest.approx(float(closed.total) / math.log(2), abs=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_steps_are_the_fall_of_snr_times_the_images_error(name: str) -> None:
    """L_t = (snr_(t−1) − snr_t)/2 ‖x − x̂‖² with the posterior's own variance: Kingma et al. (2021), equation 13."""
    chain, _ = pair(name, 1000)
    x, noise = images(2), normals(2, 1, 3, 3)
    denoiser = denoiser_of(Crooked(), chain.schedule)
    for step in (2, 3, 500, 1000):
        later, earlier = chain.level(step), chain.level(step - 1)
        error = ((denoiser.at(later.perturb(x, noise), later).x - x) ** 2).sum((1, 2, 3))
        expected = (earlier.log_snr.exp() - later.log_snr.exp()) / 2 * error
        found = ModelTerms(denoiser, chain, PlainGaussian()).at(x, torch.full((2,), step), noise).nats
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_no_perturbation_of_the_optimum_does_better() -> None:
    """The optimal denoiser minimizes the average of every L_t: moving x̂ either way raises it."""
    chain, _ = pair("linear", 1000)
    x = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1) * 0.5
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1)

    def steps(factor: float) -> Tensor:
        denoiser = gaussian_denoiser(0.5, chain.schedule)
        original = denoiser.model.forward
        denoiser.model.forward = lambda *a, **k: factor * original(*a, **k)  # type: ignore[method-assign]
        return variational_bound(denoiser, chain, x, PlainGaussian(), lambda: noise).steps.mean(0)

    optimum = steps(1.0)
    assert bool((steps(1.01) > optimum).all())
    assert bool((steps(0.99) > optimum).all())


@pytest.mark.parametrize(
    ("name", "timesteps", "bits"),
    [("linear", 1000, 7.28e-6), ("linear", 4000, 7.66e-6), ("cosine", 1000, 4.4e-10)],
)
def test_prior_term_is_the_published_number(name: str, timesteps: int, bits: float) -> None:
    chain, _ = pair(name, timesteps)
    x = torch.full((1, 1, 3, 3), 0.5, dtype=torch.float64)
    assert prior_term(chain, x).item() / (9 * math.log(2)) == pytest.approx(bits, rel=7e-3)


def test_prior_term_of_a_chain_that_ends_early_is_the_closed_form() -> None:
    """½ (σ² + α² x² − 1 − log σ²) a dimension; x²/(2 σ²) where noise is only added, to a prior as wide as it."""
    x = images(4)
    square = x.square().flatten(1)
    kept = torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64))
    expected = 0.5 * (1 - kept + kept * square - 1 - torch.log1p(-kept)).sum(1)
    torch.testing.assert_close(prior_term(Chain.uniform(LinearLogSNR(9.0, -1.0), 10), x), expected)
    added = prior_term(Chain.uniform(LogLinearSigma(0.01, 3.0), 10), x)
    torch.testing.assert_close(added, (square / (2 * 3.0**2)).sum(1))


def test_floor_of_a_variance_that_is_learned_is_nothing() -> None:
    """It may be arbitrarily narrow; a fixed one of the first step is as wide as it is."""
    chain, x, noise = Chain.uniform(LinearLogSNR(6.0, -6.0), 20), images(3), normals(3, 1, 3, 3)
    decoder = DiscretizedGaussian(17)
    assert decoder_floor(LearnedRange(), chain, x, noise, decoder).tolist() == [0, 0, 0]
    fixed = decoder_floor(FixedLarge(), chain, x, noise, decoder)
    known = Gaussian(x, FixedLarge().log_variance(chain[1], None))
    torch.testing.assert_close(fixed, -decoder.log_prob(x, known, x, chain.level(1)))
    assert bool((fixed > 0.1).all())


def test_every_term_of_a_difference_is_the_difference() -> None:
    x, noise, steps = images(3), normals(3, 1, 3, 3), torch.tensor([1, 7, 20])
    one, other = (
        ModelTerms(denoiser_of(Crooked(), schedule), Chain.uniform(schedule, 20), DiscretizedGaussian(17))
        for schedule in (LinearLogSNR(6.0, -1.0), LinearLogSNR(5.0, -2.0))
    )
    both = Difference(one, other)
    for found, first, second in (
        (both.prior(x), one.prior(x), other.prior(x)),
        (both.floor(x, noise), one.floor(x, noise), other.floor(x, noise)),
        *zip(both.at(x, steps, noise), one.at(x, steps, noise), other.at(x, steps, noise), strict=True),
    ):
        torch.testing.assert_close(found, first - second)
        assert bool((first != 0).all() and (second != 0).all())
    x_t = one.level(steps).perturb(x, noise)
    error = (one.denoiser.at(x_t, one.level(steps)).x - x).square().mean((1, 2, 3))
    torch.testing.assert_close(one.at(x, steps, noise).error, error)


@pytest.mark.parametrize("count", [1, 2])
def test_chain_of_one_step_has_a_bound(count: int) -> None:
    chain, _ = pair("linear", 1000)
    single = type(chain).uniform(chain.schedule, 1)
    bound = variational_bound(denoiser_of(Crooked(), chain.schedule), single, images(count), DiscretizedGaussian(17))
    assert bound.steps.shape == (count, 0)
    torch.testing.assert_close(bound.total, bound.prior + bound.decoder)
