"""Independent pixels: Gaussian, mixtures of Gaussians, and grey levels of given probabilities.

All are mixtures. A pixel is N(m_k, s_k²) with probability w_k; so x_t given k is N(α m_k, α² s_k² + σ²), and

    E[x | x_t, k] = m_k + α s_k²/(α² s_k² + σ²) (x_t − α m_k)

A grey level is a component of zero width.
"""

import math

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor

from noising.diffusion.levels import NoiseLevel, cast_to
from noising.oracles.oracle import Oracle


class PixelMixture(Oracle):
    """Independent pixels, each a mixture of K Gaussians."""

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        """weights, means, stds: (K,), or (C, H, W, K) for pixels that differ.

        Raises ValueError unless weights are non-negative and sum to 1 and stds are all zero (discrete) or all positive.
        """
        super().__init__()
        if not torch.allclose(weights.sum(-1), torch.ones_like(weights.sum(-1))) or bool((weights < 0).any()):
            raise ValueError("weights must not be negative, and sum to 1 for each pixel")
        if bool((stds < 0).any()) or (bool((stds == 0).any()) and bool((stds > 0).any())):
            raise ValueError("stds must be all positive or all zero")
        shape = np.broadcast_shapes(weights.shape, means.shape, stds.shape)
        self.weights, self.means, self.stds = (v.double().expand(shape) for v in (weights, means, stds))

    @property
    def entropy(self) -> float:
        if not self.stds.any():  # components of zero width: a pixel takes K values
            return float(-torch.xlogy(self.weights, self.weights).sum(-1).mean())
        if self.weights.shape[-1] == 1:
            return float((0.5 * math.log(2 * math.pi * math.e) + self.stds.log()).mean())
        pixels = zip(*(v.reshape(-1, v.shape[-1]) for v in (self.weights, self.means, self.stds)), strict=True)
        entropies = [_differential_entropy(*pixel) for pixel in pixels]
        return sum(entropies) / len(entropies)

    def clean(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        scales = (cast_to(level.alpha, x_t), cast_to(level.sigma, x_t))
        seen, alpha, sigma = (v.double()[..., None] for v in (x_t, *scales))
        weights, means, stds = (v.to(x_t.device) for v in (self.weights, self.means, self.stds))
        variance = alpha * alpha * stds * stds + sigma * sigma
        off = seen - alpha * means
        share = torch.softmax(weights.log() - 0.5 * (variance.log() + off * off / variance), -1)
        clean: Tensor = (share * (means + alpha * stds * stds / variance * off)).sum(-1)
        return clean.to(x_t)

    def error(self, level: NoiseLevel) -> Tensor:
        """E‖x − E[x | x_t]‖²/D: in closed form for one component, otherwise by the trapezoidal rule over x_t."""
        if self.weights.shape[-1] == 1:
            variance, alpha, sigma = self.stds.flatten().square(), level.alpha[..., None], level.sigma[..., None]
            error: Tensor = variance * sigma**2 / (alpha**2 * variance + sigma**2)
            return error.mean(-1)
        one_each = zip(*(field.reshape(-1, 1, 1, 1) for field in level), strict=True)
        return torch.stack([self._error(NoiseLevel(*fields)) for fields in one_each]).reshape(level.alpha.shape)

    def _error(self, level: NoiseLevel) -> Tensor:
        """E[x²] − E[E[x | x_t]²] at one level, the mean over pixels: a scalar."""
        alpha, sigma = level.alpha.flatten(), level.sigma.flatten()
        variance = alpha * alpha * self.stds * self.stds + sigma * sigma
        margin = 12 * float(variance.max().sqrt())
        low, high = float((alpha * self.means).min()) - margin, float((alpha * self.means).max()) + margin
        # steps of an eighth of the narrowest width: the rule's error is far below rounding
        count = int(8 * (high - low) / float(variance.min().sqrt())) + 2
        points = torch.linspace(low, high, count, dtype=torch.float64)
        x_t = points.reshape(-1, 1, 1, 1).expand(-1, *(self.weights.shape[:-1] or (1, 1, 1)))
        off = x_t[..., None] - alpha * self.means
        normal = torch.exp(-0.5 * off * off / variance) / (2 * math.pi * variance).sqrt()
        density = (self.weights * normal).sum(-1)
        second = (self.weights * (self.means * self.means + self.stds * self.stds)).sum(-1).mean()
        explained: Tensor = torch.trapezoid(density * self.clean(x_t, level).square(), points, dim=0).mean()
        return torch.as_tensor(second - explained)


def gaussian(std: float, mean: float = 0.0) -> PixelMixture:
    """Pixels N(mean, std²)."""
    one = torch.ones(1, dtype=torch.float64)
    return PixelMixture(one, mean * one, std * one)


def grey_levels(probabilities: Tensor) -> PixelMixture:
    """Pixels of the L grey levels evenly spaced from −1 to 1: probabilities (L,), or (C, H, W, L)."""
    values = torch.linspace(-1, 1, probabilities.shape[-1], dtype=torch.float64)
    return PixelMixture(probabilities, values, torch.zeros_like(values))


def _differential_entropy(weights: Tensor, means: Tensor, stds: Tensor) -> float:
    """−∫ p log p of one pixel in nats, by adaptive quadrature to about 1e-10."""

    def integrand(x: float) -> float:
        log_parts = weights.log() - 0.5 * ((x - means) / stds) ** 2 - stds.log() - 0.5 * math.log(2 * math.pi)
        log_density = float(torch.logsumexp(log_parts, 0))
        return -math.exp(log_density) * log_density

    low, high = float((means - 12 * stds).min()), float((means + 12 * stds).max())
    value, _ = quad(integrand, low, high, points=sorted(set(means.tolist())), epsabs=1e-11, limit=500)
    return float(value)
