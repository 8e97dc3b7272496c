"""The variational bound on −log p(x_0), term by term, each Kullback–Leibler divergence in closed form.

    L_VLB = L_T + Σ_{t=2..T} L_t + L_0
    L_T   = KL(q(x_T | x_0) ‖ p(x_T))                    the prior
    L_t   = KL(q(x_(t−1) | x_t, x_0) ‖ p(x_(t−1) | x_t)) the posteriors, one a step
    L_0   = −log p(x_0 | x_1)                            the decoder

Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 5. https://arxiv.org/abs/2006.11239

`variational_bound` gives all terms; `BoundTerms` is the interface of the estimators, which evaluate chosen steps only.
 Everything is in nats per image but `bits_per_dim`, and in float32 or better:
never under autocast.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser, Prediction
from noising.diffusion.gaussian import Gaussian
from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import ReverseVariance

_AT_ONCE = 64  # images in a batch of several steps


class Bound(NamedTuple):
    """The bound of a batch of images of dims = C·H·W numbers each, in nats.

    prior: (B,); steps: (B, T − 1), for t = 2..T; decoder: (B,).
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    dims: int

    @property
    def total(self) -> Tensor:
        """L_VLB, (B,) nats."""
        return self.prior + self.steps.sum(1) + self.decoder

    @property
    def bits_per_dim(self) -> "Bound":
        """These terms in bits per dimension."""
        nats = self.dims * math.log(2)
        return Bound(self.prior / nats, self.steps / nats, self.decoder / nats, self.dims)


def prior_term(chain: Chain, x: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) ‖ N(0, prior_std²)): (B,) nats. x: (B, C, H, W)."""
    return prior_at(chain.level(len(chain)), chain.schedule.prior_std, x)


def prior_at(level: NoiseLevel, prior_std: float, x: Tensor) -> Tensor:
    """KL(N(α x, σ²) ‖ N(0, prior_std²)) of the level at the end of the chain: (B,) nats."""
    prior = Gaussian(torch.zeros_like(x), torch.full_like(level.sigma, 2 * math.log(prior_std)))
    return Gaussian(cast_to(level.alpha, x) * x, 2 * level.sigma.log()).kl(prior)


def step_terms(
    denoiser: Denoiser, chain: Chain, x: Tensor, x_t: Tensor, steps: Tensor, prediction: Prediction, decoder: Decoder
) -> Tensor:
    """The term of each image's own step, L_t or at step 1 L_0, from one prediction for all: (B,) nats.

    x, x_t: (B, C, H, W); steps: (B,) int64 in 1..T, on the host; prediction: from x_t.
    """
    transition = chain[steps]
    terms = transition.posterior(x_t, x).kl(denoiser.reverse(transition, x_t, prediction))
    last = (steps == 1).nonzero().flatten().to(x.device, non_blocking=True)  # steps are on the host: no synchronization
    if not len(last):
        return terms
    step, x_1, raw = chain[1], x_t[last], prediction.raw_variance
    log_variance = denoiser.variance.log_variance(step, None if raw is None else raw[last])
    reverse = Gaussian(step.mean(x_1, prediction.x[last]), log_variance)
    return terms.index_copy(0, last, -decoder.log_prob(x[last], reverse, x_1, step.later))


def decoder_floor(variance: ReverseVariance, chain: Chain, x: Tensor, noise: Tensor, decoder: Decoder) -> Tensor:
    """The least L_0 that chain and decoder allow, with x̂ = x: (B,) nats.

    It is positive where a fixed variance of the first step is wider than a grey level. A learned variance may be
    arbitrarily narrow, so the floor is 0, except for a decoder that does not use the network.
    """
    transition = chain[1]
    narrow = torch.full((), -torch.inf, dtype=torch.float64)
    reverse = Gaussian(x, variance.log_variance(transition, None) if variance.outputs == 1 else narrow)
    return -decoder.log_prob(x, reverse, transition.later.perturb(x, noise), transition.later)


class Term(NamedTuple):
    """A term of the bound, L_t or at step 1 L_0, and the denoising error ‖x − x̂‖²/D at its step, each (B,)."""

    nats: Tensor
    error: Tensor


class BoundTerms(ABC):
    """The terms of a bound over the steps 1..T, step 1 the decoder's."""

    timesteps: int

    @abstractmethod
    def prior(self, x: Tensor) -> Tensor:
        """L_T, exact: (B,) nats. x: (B, C, H, W) in [−1, 1]."""

    @abstractmethod
    def floor(self, x: Tensor, noise: Tensor) -> Tensor:
        """The least possible L_0, as `decoder_floor`: (B,) nats."""

    @abstractmethod
    def level(self, steps: Tensor) -> NoiseLevel:
        """The noise level of each step; steps: (B,) on the host."""

    @abstractmethod
    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        """The term of each image's own step; steps: (B,) on the host; noise: of x's shape."""


class ModelTerms(BoundTerms):
    """The terms of a denoiser on a chain that ends in a decoder."""

    def __init__(self, denoiser: Denoiser, chain: Chain, decoder: Decoder, clip: float | None = None) -> None:
        """clip: x̂ is clamped to [−clip, clip], which changes the model that is bounded."""
        self.denoiser = denoiser
        self.chain = chain
        self.decoder = decoder
        self.clip = clip
        self.timesteps = len(chain)

    def prior(self, x: Tensor) -> Tensor:
        return prior_term(self.chain, x)

    def floor(self, x: Tensor, noise: Tensor) -> Tensor:
        return decoder_floor(self.denoiser.variance, self.chain, x, noise, self.decoder)

    def level(self, steps: Tensor) -> NoiseLevel:
        return self.chain.level(steps)

    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        level = self.chain.level(steps)
        x_t = level.perturb(x, noise)
        prediction = self.denoiser.at(x_t, level, self.clip, class_label)
        nats = step_terms(self.denoiser, self.chain, x, x_t, steps, prediction, self.decoder)
        return Term(nats, (prediction.x - x).square().flatten(1).mean(1))


class Difference(BoundTerms):
    """The terms of one model minus those of another on the same images, steps and noise: common variation cancels."""

    def __init__(self, first: BoundTerms, second: BoundTerms) -> None:
        """Raises ValueError unless both are sums over the same number of steps."""
        if first.timesteps != second.timesteps:
            raise ValueError(f"bounds of {first.timesteps} and of {second.timesteps} steps have no steps to pair")
        self.first = first
        self.second = second
        self.timesteps = first.timesteps

    def prior(self, x: Tensor) -> Tensor:
        return self.first.prior(x) - self.second.prior(x)

    def floor(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.first.floor(x, noise) - self.second.floor(x, noise)

    def level(self, steps: Tensor) -> NoiseLevel:
        """Those of the first."""
        return self.first.level(steps)

    def at(self, x: Tensor, steps: Tensor, noise: Tensor, class_label: Tensor | None = None) -> Term:
        first, second = (terms.at(x, steps, noise, class_label) for terms in (self.first, self.second))
        return Term(first.nats - second.nats, first.error - second.error)


def variational_bound(
    denoiser: Denoiser,
    chain: Chain,
    x: Tensor,
    decoder: Decoder,
    noise: Callable[[], Tensor] | None = None,
    clip: float | None = None,
    class_label: Tensor | None = None,
) -> Bound:
    """Every term of the bound, by T network evaluations per image.

    x: (B, C, H, W) on the decoder's grid in [−1, 1]; noise: gives standard normal noise of x's shape for each step in
    turn, t = 1..T (default: from torch's generator); clip: x̂ is clamped to [−clip, clip]. Of few images, as many steps
    are evaluated in one batch as make up at most _AT_ONCE images.
    """
    draw = noise or (lambda: torch.randn_like(x))
    terms = ModelTerms(denoiser, chain, decoder, clip)
    parts = []
    for steps in torch.split(torch.arange(1, len(chain) + 1), max(1, _AT_ONCE // len(x))):
        several, noises = x.repeat(len(steps), 1, 1, 1), torch.cat([draw() for _ in steps])
        classes = None if class_label is None else class_label.repeat(len(steps))
        term = terms.at(several, steps.repeat_interleave(len(x)), noises, classes)
        parts.append(term.nats.reshape(len(steps), len(x)))
    nats = torch.cat(parts).T
    return Bound(terms.prior(x), nats[:, 1:], nats[:, 0], x[0].numel())
