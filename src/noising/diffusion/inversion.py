"""Latents: the noise x_T that a deterministic sampler maps to an image, its inversion, and interpolation.

A DDIM step (η = 0) is Euler's method in x/α against σ/α, so it can be taken in either direction. From s to the noisier
t, with ε̂ = (x_s − α_s x̂)/σ_s estimated at s,

    x_t = α_t x̂ + σ_t ε̂ = (σ_t/σ_s) x_s + (α_t − α_s σ_t/σ_s) x̂(x_s, s)
"""

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import NoiseLevel
from noising.diffusion.transitions import Chain

_STRAIGHT = 1e-3  # sine of the angle below which the chord replaces the arc, whose formula loses its float32 digits


def interpolate(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation between latents a (fraction 0) and b (fraction 1): (B, C, H, W), as a and b.

        (sin((1 − f) θ) a + sin(f θ) b)/sin θ,    θ the angle between a and b, over all pixels of an image

    A straight line would pass through latents too short for Gaussian noise: half-way, by a factor √2. Parallel and
    opposite latents, whose great circle is not defined, are interpolated on the line. Song et al., "Denoising Diffusion
    Implicit Models" (2020), appendix D.5, after Shoemake, "Animating Rotation with Quaternion Curves" (1985).
    https://arxiv.org/abs/2010.02502
    """
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (a.flatten(1), b.flatten(1)))
    # from the two diagonals: the cosine is inaccurate for small angles
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)).reshape(-1, 1, 1, 1)
    sine = torch.sin(angle)
    of_a = torch.where(sine > _STRAIGHT, torch.sin((1 - fraction) * angle) / sine, 1 - fraction)
    of_b = torch.where(sine > _STRAIGHT, torch.sin(fraction * angle) / sine, fraction)
    return of_a * a + of_b * b


@torch.no_grad()
def invert(denoiser: Denoiser, chain: Chain, x: Tensor, class_label: Tensor | None = None) -> Tensor:
    """The x_T that `DDIM(eta=0, clip=None)` maps to the images x (B, C, H, W), to first order in the step.

    chain: the sampler's, `sampler.chain(denoiser.schedule)`. x_T is at its last level; divided by `schedule.prior_std`
    it is the noise that the sampler begins with. The network is evaluated at every level but the last, so α may be 0
    there. Song et al., "Denoising Diffusion Implicit Models" (2020), sections 4.3 and 5.4.
    https://arxiv.org/abs/2010.02502

    Raises ValueError for a chain of a single step that ends at α = 0, which keeps no signal.
    """
    s, t = chain.steps.earlier, chain.steps.later
    if t.alpha[0] == 0:
        raise ValueError("a chain of one step that leaves no signal cannot be inverted: take more steps")
    # No network estimates ε̂ of a clean image. The first step is Euler's too, from x/α at σ/α = 0, but with the slope
    # ε̂ at its end t_1, estimated from z = α_1 x, where a step without noise would lead:
    #   x_1 = z + σ_1 ε̂(z, t_1) = 2 z − α_1 x̂(z, t_1)
    seen = NoiseLevel(*(torch.cat([later[:1], earlier[1:]]) for later, earlier in zip(t, s, strict=True)))
    coef_x_t = t.sigma / seen.sigma
    coef_x0 = t.alpha - coef_x_t * seen.alpha
    coef_x_t[0], coef_x0[0] = 2.0, -t.alpha[0]
    denoise = denoiser.prepare(seen, x, class_label)
    x_t = float(t.alpha[0]) * x
    for number, (by_x_t, by_x0) in enumerate(zip(coef_x_t.tolist(), coef_x0.tolist(), strict=True)):
        x_t = torch.mul(x_t, by_x_t).add_(denoise(number, x_t)[0], alpha=by_x0)
    return x_t
