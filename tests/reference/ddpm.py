"""DDPM (Ho et al. 2020) and improved DDPM (Nichol & Dhariwal 2021) in float64 numpy.

Nothing here comes from the package: the tests compare the two. Steps are counted t = 1..T as in the papers,
and every array has T + 1 entries so that `beta[t]` is beta_t; index 0 is the clean image: alpha_bar_0 = 1.
Images are (N, ...) arrays in [-1, 1]; densities and divergences of images are sums over pixels, (N,) nats.
A log variance is indexed by t: `log_variance[t]` is a number, or an array that broadcasts against the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

Array = NDArray[np.float64]
Predictor = Callable[[Array, int], Array]  # (x_t, t) -> eps
Decoder = Callable[[Array, Array, Array], Array]  # (x_0, mean, log variance) -> log-likelihood (N,)


# ------------------------------------------------------------------------------------------- noise schedules
def linear_beta(T: int) -> Array:
    """beta_1..beta_T evenly spaced, 1e-4 to 0.02 for T = 1000 and scaled by 1000/T otherwise (T above 20)."""
    return np.linspace(0.1 / T, 20 / T, T)


def cosine_beta(T: int, s: float = 0.008, largest: float = 0.999) -> Array:
    """Nichol & Dhariwal eq. 17: alpha_bar_t = f(t)/f(0) with f(t) = cos^2((t/T + s)/(1 + s) pi/2)."""
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
    return np.asarray(np.minimum(1 - f[1:] / f[:-1], largest))


def respaced_beta(alpha_bar: Array, steps: Array | list[int]) -> Array:
    """Nichol & Dhariwal eq. 19: the betas of the chain that visits only these steps (1-based, increasing)."""
    kept = alpha_bar[np.concatenate([[0], steps]).astype(int)]
    return np.asarray(1 - kept[1:] / kept[:-1])


# ------------------------------------------------------------------------------------------------- Gaussians
def pixel_sum(x: Array) -> Array:
    """Sum over everything but the image index: (N, ...) -> (N,)."""
    return np.asarray(x.reshape(len(x), -1).sum(axis=1))


def gaussian_log_density(x: Array, mean: Array | float, log_variance: Array | float) -> Array:
    """log N(x; mean, exp(log_variance)), elementwise."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean) ** 2 / np.exp(log_variance))


def gaussian_kl(mean: Array, log_var: Array, mean2: Array | float, log_var2: Array | float) -> Array:
    """KL(N(mean, exp(log_var)) || N(mean2, exp(log_var2))), elementwise."""
    log_ratio = np.asarray(log_var - log_var2)
    return 0.5 * (np.expm1(log_ratio) - log_ratio + (mean - mean2) ** 2 / np.exp(log_var2))


def normal_log_mass(a: Array, b: Array) -> Array:
    """log(Phi(b) - Phi(a)) for a < b, accurate in both tails."""
    a, b = np.where(a + b > 0, -b, a), np.where(a + b > 0, -a, b)  # by symmetry work in the left tail
    return np.asarray(log_ndtr(b) + np.log(-np.expm1(log_ndtr(a) - log_ndtr(b))))


def plain_gaussian(x0: Array, mean: Array, log_variance: Array) -> Array:
    """The density of x_0 as a continuous quantity, (N,)."""
    return pixel_sum(gaussian_log_density(x0, mean, log_variance))


def discretized_gaussian(levels: int = 256) -> Decoder:
    """Ho et al. eq. 13 for grey levels -1, -1 + 2/(K-1), ..., 1: the mass of the bin, the end bins open."""

    def log_likelihood(x0: Array, mean: Array, log_variance: Array) -> Array:
        level, std = np.rint((x0 + 1) / 2 * (levels - 1)), np.exp(0.5 * log_variance)
        lower = np.where(level == 0, -np.inf, (x0 - mean - 1 / (levels - 1)) / std)
        upper = np.where(level == levels - 1, np.inf, (x0 - mean + 1 / (levels - 1)) / std)
        return pixel_sum(normal_log_mass(lower, upper))

    return log_likelihood


# ----------------------------------------------------------------------------------------- the two processes
class Reverse(NamedTuple):
    """What p is made of."""

    eps: Predictor
    log_variance: Array
    decoder: Decoder
    clip: bool = False  # the predicted x_0 to [-1, 1]


class Bound(NamedTuple):
    """The terms of Ho et al. eq. 5, in nats: prior L_T (N,), steps L_2..L_T (N, T-1), decoder L_0 (N,)."""

    prior: Array
    steps: Array
    decoder: Array

    @property
    def total(self) -> Array:
        return np.asarray(self.prior + self.steps.sum(axis=-1) + self.decoder)


class DDPM:
    """The forward chain q of beta_1..beta_T (T at least 2), and the reverse steps of a predictor."""

    def __init__(self, beta: Array) -> None:
        self.T = len(beta)
        self.beta = np.append(0.0, beta)
        self.alpha = 1 - self.beta
        log_alpha_bar = np.cumsum(np.log1p(-self.beta))
        self.alpha_bar = np.exp(log_alpha_bar)
        self.noise_variance = 0 - np.expm1(log_alpha_bar)  # 1 - alpha_bar, exact at small t too

        # Eqs. 6-7: q(x_{t-1} | x_t, x_0) = N(from_x0 x_0 + from_xt x_t, posterior_variance).
        variance_ratio = np.append(0.0, self.noise_variance[:-1] / self.noise_variance[1:])
        self.posterior_variance = variance_ratio * self.beta
        self.from_xt = variance_ratio * np.sqrt(self.alpha)
        self.from_x0 = np.append(0.0, np.sqrt(self.alpha_bar[:-1]) * beta / self.noise_variance[1:])

        # The reference code's Sigma_theta. The posterior variance of step 1 is 0: step 2's stands in for it.
        small, large = self.posterior_variance.copy(), self.beta.copy()
        small[:2] = large[:2] = self.posterior_variance[2]
        self.fixed_small, self.fixed_large = np.log(small), np.log(large)

    def learned_range(self, output: Array, t: int) -> Array:
        """Nichol & Dhariwal eq. 15: log variance from a network output in [-1, 1]; beta_1 is not patched."""
        v = (output + 1) / 2
        return np.asarray(v * np.log(self.beta[t]) + (1 - v) * self.fixed_small[t])

    # Forward: q(x_t | x_{t-1}) (eq. 2), q(x_t | x_0) (eq. 4), q(x_{t-1} | x_t, x_0) (eq. 6).
    def forward(self, x_previous: Array, t: int) -> tuple[Array, float]:
        """Mean and variance of q(x_t | x_{t-1})."""
        return np.sqrt(self.alpha[t]) * x_previous, float(self.beta[t])

    def forward_log_density(self, x_t: Array, x_previous: Array, t: int) -> Array:
        """log q(x_t | x_{t-1}), (N,)."""
        mean, variance = self.forward(x_previous, t)
        return pixel_sum(gaussian_log_density(x_t, mean, math.log(variance)))

    def marginal(self, x0: Array, t: int) -> tuple[Array, float]:
        """Mean and variance of q(x_t | x_0)."""
        return np.sqrt(self.alpha_bar[t]) * x0, float(self.noise_variance[t])

    def noised(self, x0: Array, t: int, noise: Array) -> Array:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise."""
        return np.asarray(np.sqrt(self.alpha_bar[t]) * x0 + np.sqrt(self.noise_variance[t]) * noise)

    def posterior(self, x0: Array, x_t: Array, t: int) -> tuple[Array, float]:
        """Mean and variance of q(x_{t-1} | x_t, x_0)."""
        return self.from_x0[t] * x0 + self.from_xt[t] * x_t, float(self.posterior_variance[t])

    # Reverse: p(x_{t-1} | x_t) = N(mean, exp(log_variance[t])) (eq. 1).
    def x0_from_eps(self, x_t: Array, t: int, eps: Array, clip: bool = False) -> Array:
        x0 = (x_t - np.sqrt(self.noise_variance[t]) * eps) / np.sqrt(self.alpha_bar[t])
        return np.asarray(np.clip(x0, -1, 1) if clip else x0)

    def reverse_mean_from_x0(self, x_t: Array, t: int, x0: Array, clip: bool = False) -> Array:
        """The posterior's mean at the predicted x_0."""
        return self.posterior(np.clip(x0, -1, 1) if clip else x0, x_t, t)[0]

    def reverse_mean(self, x_t: Array, t: int, eps: Array, clip: bool = False) -> Array:
        """Eq. 11; when the predicted x_0 is clipped, the posterior's mean there."""
        if clip:
            return self.reverse_mean_from_x0(x_t, t, self.x0_from_eps(x_t, t, eps), clip=True)
        noise = self.beta[t] / np.sqrt(self.noise_variance[t]) * eps
        return np.asarray((x_t - noise) / np.sqrt(self.alpha[t]))

    def model_mean(self, x_t: Array, t: int, model: Reverse) -> Array:
        return self.reverse_mean(x_t, t, model.eps(x_t, t), model.clip)

    def ancestral_step(self, x_t: Array, t: int, z: Array, model: Reverse) -> Array:
        """x_{t-1} of Ho et al. algorithm 2: no noise at t = 1."""
        mean = self.model_mean(x_t, t, model)
        return mean + np.exp(0.5 * model.log_variance[t]) * z if t > 1 else mean

    def ddim_step(self, x_t: Array, t: int, s: int, z: Array, model: Reverse, eta: float) -> Array:
        """x_s, s < t, of Song et al. 2021 eqs. 12 and 16; a clipped x_0 gives a new eps."""
        x0 = self.x0_from_eps(x_t, t, model.eps(x_t, t), model.clip)
        eps = (x_t - np.sqrt(self.alpha_bar[t]) * x0) / np.sqrt(self.noise_variance[t])
        ratio = self.noise_variance[s] / self.noise_variance[t]
        variance = eta**2 * ratio * (1 - self.alpha_bar[t] / self.alpha_bar[s])
        mean = np.sqrt(self.alpha_bar[s]) * x0 + np.sqrt(self.noise_variance[s] - variance) * eps
        return np.asarray(mean + np.sqrt(variance) * z)

    # The bound: term by term (eq. 5), and as an average over whole trajectories (eq. 3).
    def bound(self, x0: Array, noise: Array, model: Reverse) -> Bound:
        """One draw of every term: noise[:, t - 1] makes x_t from x_0, so noise is (N, T, ...)."""
        mean, variance = self.marginal(x0, self.T)
        prior = pixel_sum(gaussian_kl(mean, np.log(variance), 0.0, 0.0))
        steps = np.empty((len(x0), self.T - 1))
        for t in range(2, self.T + 1):
            x_t = self.noised(x0, t, noise[:, t - 1])
            mean, variance = self.posterior(x0, x_t, t)
            reverse = self.model_mean(x_t, t, model), model.log_variance[t]
            steps[:, t - 2] = pixel_sum(gaussian_kl(mean, np.log(variance), *reverse))
        mean = self.model_mean(self.noised(x0, 1, noise[:, 0]), 1, model)
        return Bound(prior, steps, -model.decoder(x0, mean, model.log_variance[1]))

    def forward_path(self, x0: Array, noise: Array) -> Array:
        """The trajectory x_0..x_T, (N, T + 1, ...), whose step into x_t uses noise[:, t - 1]."""
        path = [x0]
        for t in range(1, self.T + 1):
            mean, variance = self.forward(path[-1], t)
            path.append(mean + math.sqrt(variance) * noise[:, t - 1])
        return np.stack(path, axis=1)

    def log_forward_joint(self, path: Array) -> Array:
        """log q(x_{1:T} | x_0)."""
        terms = [self.forward_log_density(path[:, t], path[:, t - 1], t) for t in range(1, self.T + 1)]
        return np.asarray(np.sum(terms, axis=0))

    def log_reverse_joint(self, path: Array, model: Reverse) -> Array:
        """log p(x_{0:T}) = log p(x_T) + sum of log p(x_{t-1} | x_t) over t > 1 + log p(x_0 | x_1)."""
        total = plain_gaussian(path[:, self.T], np.zeros(()), np.zeros(()))
        for t in range(self.T, 0, -1):
            density, mean = plain_gaussian if t > 1 else model.decoder, self.model_mean(path[:, t], t, model)
            total = total + density(path[:, t - 1], mean, model.log_variance[t])
        return total

    def trajectory_bound(self, path: Array, model: Reverse) -> Array:
        """log q(x_{1:T} | x_0) / p(x_{0:T}), whose mean over forward trajectories is the bound."""
        return self.log_forward_joint(path) - self.log_reverse_joint(path, model)


# --------------------------------------------------------- data x_0 ~ N(0, std^2): everything in closed form
class GaussianData:
    """The best predictor and its bound in nats per dimension, with the plain Gaussian decoder."""

    def __init__(self, chain: DDPM, std: float) -> None:
        self.chain, self.std = chain, std
        self.entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
        self.total_variance = chain.alpha_bar * std**2 + chain.noise_variance  # of x_t
        x0_variance = std**2 * chain.noise_variance / self.total_variance  # of x_0 given x_t
        self.variance = chain.posterior_variance + chain.from_x0**2 * x0_variance  # of x_{t-1} given x_t
        self.optimal = np.append(np.nan, np.log(self.variance[1:]))  # p is exact but for its start:
        self.prior_gap = float(0.5 * (self.total_variance[-1] - 1 - np.log(self.total_variance[-1])))

    def eps(self, x_t: Array, t: int) -> Array:
        """E[eps | x_t]."""
        return np.asarray(np.sqrt(self.chain.noise_variance[t]) / self.total_variance[t] * x_t)

    def bound(self, log_variance: Array) -> Bound:
        """The expectation of every term; prior and decoder are scalars, steps is (T-1,)."""
        ratio, log_posterior = self.variance / np.exp(log_variance), np.log(self.chain.posterior_variance[2:])
        prior = 0.5 * (self.total_variance[-1] - 1 - np.log(self.chain.noise_variance[-1]))
        steps = 0.5 * (log_variance[2:] - log_posterior - 1 + ratio[2:])
        decoder = 0.5 * (math.log(2 * math.pi) + log_variance[1] + ratio[1])
        return Bound(np.asarray(prior), steps, np.asarray(decoder))
