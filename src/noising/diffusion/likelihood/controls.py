"""Control variates of the bound's terms: cheap numbers of a known mean that rise and fall with a term.

Of an image x, its noise ε and a noise level they are

    ‖x − x̂‖² − E_ε ‖x − x̂‖²   of the linear (Wiener's) denoiser of pixels that are taken as independent
    ‖x‖² and ‖∇x‖₁            less their means over the set of images

and none needs the network. A term less β times them has the same mean, for any β that is fixed before the draws, and
for a good one less variance. Owen, "Monte Carlo theory, methods and examples" (2013), section 8.9.
https://artowen.su.domains/mc/
"""

from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.likelihood.image_set import ImageSet

PRIOR_IMAGES = 4  # weight, in images, of the variance of all pixels in that of each
AT_ONCE = 1000  # images read together; the linear denoiser is that of the first as many


class ControlVariates:
    """The control variates of a set of images."""

    def __init__(self, images: ImageSet) -> None:
        """Read each image once."""
        first, *others = torch.split(torch.arange(images.size), AT_ONCE)
        x, _ = images.fetch(first)
        self._mean, self._variance = _pixel_moments(x)
        features = torch.cat([_image_features(x), *(_image_features(images.fetch(part)[0]) for part in others)])
        centred = features - features.mean(0)
        scale = centred.square().mean(0).sqrt()
        self.of_images = centred / torch.where(scale > 1e-6 * features.abs().mean(0), scale, torch.inf)
        """(N, 2) float64 on the host: ‖x‖² and ‖∇x‖₁ of each image, of mean 0 and variance 1; 0 if all are alike."""

    def of_noise(self, x: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
        """The linear denoiser's squared error less its mean over the noise, a dimension: (B,).

        x, noise: (B, C, H, W). With x̂ = μ + w (x_t − α μ) and w = α v/(α² v + σ²), for pixels of mean μ and variance
        v, the error is x̂ − x = −(1 − α w)(x − μ) + σ w ε.
        """
        alpha, sigma = cast_to(level.alpha, x), cast_to(level.sigma, x)
        w = alpha * self._variance / (alpha**2 * self._variance + sigma**2)
        missed, passed = (alpha * w - 1) * (x - self._mean), sigma * w
        return (2 * missed * passed * noise + passed**2 * (noise**2 - 1)).flatten(1).mean(1)


class Controls(NamedTuple):
    """Control variates with coefficients, fixed before the draws, for the steps of each of K strata.

    edges: (K + 1,), stratum k holds the steps edges[k] .. edges[k + 1] − 1; coefficients: (K, 3) float64, nats of a
    term for one of the noise's, and of each of the images'.
    """

    variates: ControlVariates
    edges: Tensor
    coefficients: Tensor

    def __call__(self, index: Tensor, steps: Tensor, of_noise: Tensor) -> Tensor:
        """Nats of mean 0 to be taken off terms at these steps, of images of these global indices; (E,) all."""
        coefficients = self.coefficients[torch.searchsorted(self.edges, steps, right=True) - 1]
        of_images = (coefficients[:, 1:] * self.variates.of_images[index]).sum(1)
        return coefficients[:, 0] * of_noise + of_images

    def of_bound(self, index: Tensor) -> Tensor:
        """The sum over all steps of what is taken off the terms of these images, by mean over the noise: (B,) nats."""
        return self.variates.of_images[index] @ (self.coefficients[:, 1:].T @ self.edges.diff().double())


def _pixel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel over images (B, C, H, W), the variance drawn towards that of all pixels."""
    mean = x.mean(0)
    variance = (x - mean).square().mean(0)
    return mean, (len(x) * variance + PRIOR_IMAGES * variance.mean()) / (len(x) + PRIOR_IMAGES)


def _image_features(x: Tensor) -> Tensor:
    """‖x‖² and ‖∇x‖₁ of each image: (B, 2) float64 on the host."""
    down, across = (x.diff(dim=side).abs().flatten(1).sum(1) for side in (2, 3))
    return torch.stack([x.square().flatten(1).sum(1), down + across], 1).cpu().double()
