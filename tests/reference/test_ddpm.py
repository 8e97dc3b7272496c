"""The reference implementation against published constants, closed forms and its own other half."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import integrate, stats

from tests.reference import ddpm
from tests.reference.ddpm import DDPM, GaussianData, Reverse

CHAINS = {
    (name, T): DDPM(beta(T))
    for name, beta in (("linear", ddpm.linear_beta), ("cosine", ddpm.cosine_beta))
    for T in (1000, 4000)
}
CASES = list(CHAINS)


def digits(value: float, stated: str) -> None:
    """Asserts that `value`, rounded to the digits that `stated` shows, is `stated`."""
    mantissa, _, exponent = stated.partition("e")
    place = len(mantissa.partition(".")[2])
    half = 0.5 * 10.0 ** (int(exponent or 0) - place)
    assert abs(value - float(stated)) <= half * (1 + 1e-6), f"{value!r} is not {stated}"


@pytest.mark.parametrize(
    ("case", "abar_T", "posterior_2", "prior", "weights", "floor"),
    list(
        zip(
            CASES,
            ("4.03583e-5", "4.24665e-5", "2.42877e-9", "1.51798e-10"),
            ("5.45319e-5", "1.28036e-5", "2.17895e-5", "5.00768e-6"),
            ("7.28e-6", "7.66e-6", "4.4e-10", "2.7e-11"),
            (
                ("0.8651", "0.01468", "0.01472"),
                ("0.7573", "0.0125", "0.00363"),
                ("0.8063", "0.01376", "720.6"),
                ("0.7436", "0.01168", "720.6"),
            ),
            ("1.3054", "0.4602", "0.7390", "0.1198"),
            strict=True,
        )
    ),
)
def test_constants_of_the_standard_schedules(
    case: tuple[str, int], abar_T: str, posterior_2: str, prior: str, weights: tuple[str, ...], floor: str
) -> None:
    chain = CHAINS[case]
    digits(chain.alpha_bar[-1], abar_T)
    digits(chain.posterior_variance[2], posterior_2)
    digits(float(GaussianData(chain, 0.5).bound(chain.fixed_small).prior) / math.log(2), prior)
    for t, weight in zip((2, 101, chain.T), weights, strict=True):  # L_t for an error of 1 in eps, zero mean
        zero, one = np.zeros((1, 1)), np.ones((1, 1))
        means = chain.reverse_mean(zero, t, zero), chain.reverse_mean(zero, t, one)
        kl = ddpm.gaussian_kl(means[0], chain.fixed_small[t], means[1], chain.fixed_small[t])
        digits(kl.item() / math.log(2), weight)
    grey = np.full((1, 1), 1 / 255)
    centred = ddpm.discretized_gaussian(256)(grey, grey, chain.fixed_small[1])
    digits(-centred.item() / math.log(2), floor)


@pytest.mark.parametrize(
    ("case", "std", "entropy", "decoder", "steps", "total", "large_total", "large_gap"),
    [
        (("linear", 1000), 0.5, "1.04710", "-4.43312", "6.30244", "1.86932", "1.21253", ".1654"),
        (("linear", 1000), 1.0, "2.04710", "-4.43272", "7.31452", "2.88183", "2.21113", ".1640"),
        (("cosine", 1000), 0.5, "1.04710", "-5.05070", "6.86241", "1.81171", "1.23230", ".1852"),
        (("cosine", 4000), 0.5, "1.04710", "-6.05685", "7.78749", "1.73064", "1.25795", ".2109"),
    ],
)
def test_bound_of_gaussian_data(
    case: tuple[str, int],
    std: float,
    entropy: str,
    decoder: str,
    steps: str,
    total: str,
    large_total: str,
    large_gap: str,
) -> None:
    chain, bit = CHAINS[case], math.log(2)
    data = GaussianData(chain, std)
    small, large, best = (data.bound(v) for v in (chain.fixed_small, chain.fixed_large, data.optimal))
    digits(data.entropy / bit, entropy)
    digits(float(small.decoder) / bit, decoder)
    digits(float(small.steps.sum()) / bit, steps)
    digits(float(small.total) / bit, total)
    digits(float(large.total) / bit, large_total)
    digits((float(large.total) - data.entropy) / bit, large_gap)
    assert float(best.total) == pytest.approx(data.entropy + data.prior_gap, rel=1e-11)


def test_beta_tables() -> None:
    assert CHAINS["linear", 4000].beta[[1, 4000]] == pytest.approx([2.5e-5, 0.005], rel=1e-14)
    cosine = CHAINS["cosine", 1000].beta
    assert cosine[1000] == 0.999
    assert cosine[999] == pytest.approx(0.75, abs=1e-4)  # only the last is cut


def test_fixed_variances_patch_the_first_step_only() -> None:
    chain = CHAINS["linear", 1000]
    assert chain.posterior_variance[1] == 0
    assert np.exp(chain.fixed_small[1:]) == pytest.approx(
        np.append(chain.posterior_variance[2], chain.posterior_variance[2:]), rel=1e-13
    )
    assert np.exp(chain.fixed_large[1:]) == pytest.approx(np.append(chain.posterior_variance[2], chain.beta[2:]))
    ends = chain.learned_range(np.array([-1.0, 1.0]), 1)
    assert ends == pytest.approx(np.log([chain.posterior_variance[2], chain.beta[1]]), rel=1e-14)


def test_respaced_chain_keeps_the_noise_of_its_steps() -> None:
    chain, steps = CHAINS["cosine", 1000], [1, 250, 500, 1000]
    kept = DDPM(ddpm.respaced_beta(chain.alpha_bar, steps))
    assert kept.alpha_bar[1:] == pytest.approx(chain.alpha_bar[steps], rel=1e-9)


def test_posterior_is_bayes_rule() -> None:
    chain = DDPM(ddpm.linear_beta(30))
    x0, x_previous, x_t = np.random.default_rng(0).standard_normal((3, 4, 2))
    for t in (2, 9, 30):
        mean, variance = chain.marginal(x0, t - 1)
        joint = ddpm.plain_gaussian(x_previous, mean, np.log(np.asarray(variance)))
        joint = joint + chain.forward_log_density(x_t, x_previous, t)
        mean, variance = chain.marginal(x0, t)
        joint = joint - ddpm.plain_gaussian(x_t, mean, np.log(np.asarray(variance)))
        mean, variance = chain.posterior(x0, x_t, t)
        posterior = ddpm.plain_gaussian(x_previous, mean, np.log(np.asarray(variance)))
        assert joint == pytest.approx(posterior, rel=1e-9)


def test_reverse_mean_of_eps_and_of_x0_agree_and_clipping_acts() -> None:
    chain = CHAINS["linear", 1000]
    x_t, eps = np.random.default_rng(1).standard_normal((2, 3, 5))
    for t in (1, 2, 400, 1000):
        x0 = chain.x0_from_eps(x_t, t, eps)
        assert chain.reverse_mean(x_t, t, eps) == pytest.approx(chain.reverse_mean_from_x0(x_t, t, x0), rel=1e-8)
        clipped = chain.posterior(np.clip(x0, -1, 1), x_t, t)[0]
        assert np.array_equal(chain.reverse_mean(x_t, t, eps, clip=True), clipped)
        assert np.abs(x0).max() > 1


def test_step_divergence_is_the_difference_of_signal_to_noise() -> None:
    """L_t = (SNR(t-1) - SNR(t)) |x_0 - prediction|^2 / 2 at the posterior's variance (VDM eq. 13)."""
    chain, random = DDPM(ddpm.cosine_beta(30)), np.random.default_rng(2)
    x0, noise = random.uniform(-1, 1, (4, 6)), random.standard_normal((4, 30, 6))
    bound = chain.bound(x0, noise, Reverse(lambda x, t: np.tanh(x), chain.fixed_small, ddpm.plain_gaussian))
    snr = chain.alpha_bar[1:] / chain.noise_variance[1:]
    for t in range(2, 31):
        x_t = chain.noised(x0, t, noise[:, t - 1])
        error = ((x0 - chain.x0_from_eps(x_t, t, np.tanh(x_t))) ** 2).sum(axis=1)
        assert bound.steps[:, t - 2] == pytest.approx(0.5 * (snr[t - 2] - snr[t - 1]) * error, rel=1e-8)


def test_gaussian_divergence_is_its_integral() -> None:
    p, q = stats.norm(0.3, 0.7), stats.norm(-0.4, 1.1)
    integral = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -8, 8, epsabs=1e-12)[0]
    args = np.array(0.3), np.log(np.array(0.49)), -0.4, math.log(1.21)
    assert ddpm.gaussian_kl(*args) == pytest.approx(integral, rel=1e-9)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [0.01, 0.4])
def test_decoder_is_a_distribution_over_grey_levels(levels: int, std: float) -> None:
    grey = np.linspace(-1, 1, levels)[:, None]
    decode = ddpm.discretized_gaussian(levels)
    mass = np.exp(decode(grey, np.array(0.23), np.log(np.array(std**2))))
    assert mass.sum() == pytest.approx(1, abs=1e-12)
    normal, half = NormalDist(0.23, std), 1 / (levels - 1)
    inner = [normal.cdf(g + half) - normal.cdf(g - half) for g in grey[1:-1, 0]]
    assert mass[1:-1] == pytest.approx(inner, abs=1e-13)
    assert mass[0] == pytest.approx(normal.cdf(-1 + half), abs=1e-13)


def test_decoder_holds_far_from_the_mean() -> None:
    """Symmetric, and by Mills' ratio log Phi(-z) = -z^2/2 - log(z sqrt(2 pi)) - 1/z^2 + O(z^-4)."""
    log_variance = np.log(np.array(1e-6))  # white drawn as black: 2000 standard deviations
    left, right = (ddpm.discretized_gaussian()(np.full((1, 1), g), np.array(-g), log_variance).item() for g in (-1, 1))
    z = (2 - 1 / 255) * 1e3
    assert left == pytest.approx(right, rel=1e-14)
    assert left == pytest.approx(-(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)) - 1 / z**2, rel=1e-12)


def test_trajectories_average_to_the_terms() -> None:
    """Ho et al. eq. 3 = eq. 5, on Gaussian data with a wrong variance, where the bound is known."""
    chain, count = DDPM(ddpm.linear_beta(1000)[::125]), 40_000
    data = GaussianData(chain, 0.5)
    model = Reverse(data.eps, chain.fixed_large, ddpm.plain_gaussian)
    random = np.random.default_rng(3)
    x0, noise = 0.5 * random.standard_normal((count, 1)), random.standard_normal((count, chain.T, 1))
    truth = float(data.bound(chain.fixed_large).total)
    estimates = (
        chain.trajectory_bound(chain.forward_path(x0, noise), model),
        chain.bound(x0, noise, model).total,
    )
    for estimate in estimates:
        error = estimate.std() / math.sqrt(count)
        assert abs(estimate.mean() - truth) < 4 * error
        assert error < 0.02


def test_trajectory_is_constant_where_the_reverse_chain_is_exact() -> None:
    """With the optimal p, q(x_{1:T} | x_0) / p(x_{0:T}) = q(x_T) / (q(x_0) N(x_T; 0, 1)) on every path."""
    chain = DDPM(ddpm.cosine_beta(12))
    data, random = GaussianData(chain, 0.5), np.random.default_rng(4)
    path = chain.forward_path(0.5 * random.standard_normal((5, 2)), random.standard_normal((5, 12, 2)))
    log_ratio = chain.trajectory_bound(path, Reverse(data.eps, data.optimal, ddpm.plain_gaussian))
    zero = np.zeros(())
    truth = ddpm.plain_gaussian(path[:, -1], zero, np.log(data.total_variance[-1]))
    truth = truth - ddpm.plain_gaussian(path[:, -1], zero, zero)
    truth = truth - ddpm.plain_gaussian(path[:, 0], zero, np.log(np.array(0.25)))
    assert log_ratio == pytest.approx(truth, rel=1e-9, abs=1e-9)


def test_ddim_with_eta_one_is_the_ancestral_step() -> None:
    chain = CHAINS["linear", 1000]
    model = Reverse(lambda x, t: np.sin(x), chain.fixed_small, ddpm.plain_gaussian, clip=True)
    x_t, z = np.random.default_rng(5).standard_normal((2, 3, 4))
    for t in (1, 2, 300, 1000):
        ancestral = chain.ancestral_step(x_t, t, z, model)
        assert chain.ddim_step(x_t, t, t - 1, z, model, eta=1) == pytest.approx(ancestral, abs=1e-9)


def test_ddim_with_eta_zero_keeps_x0_and_noise() -> None:
    chain = CHAINS["cosine", 1000]
    x0, noise, z = np.random.default_rng(6).standard_normal((3, 3, 4))
    model = Reverse(lambda x, t: noise, chain.fixed_small, ddpm.plain_gaussian)
    x_s = chain.ddim_step(chain.noised(x0, 700, noise), 700, 300, z, model, eta=0)
    assert x_s == pytest.approx(chain.noised(x0, 300, noise), rel=1e-9)
