"""The exact likelihood of the probability-flow ODE, and the mean of likelihoods over images and replicates.

The flow moves an image so that its density at each time is that of the noised data. With r² = α² + σ² and the angle
φ = arctan(σ/α), z = x_t/r obeys

    dz/dφ = v̂ = cos φ ε̂ − sin φ x̂,        d log p(z)/dφ = −∇·v̂

for every geometry, and without a singularity at either end where x̂ and ε̂ are bounded (x̂ solved from a predicted ε̂
is not, at α ≈ 0). Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2020),
section 4.3; in this variable, Salimans & Ho, "Progressive Distillation" (2022), appendix D.
https://arxiv.org/abs/2011.13456 https://arxiv.org/abs/2202.00512
"""

import math
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.gaussian import Gaussian
from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.likelihood.divergences import Trace
from noising.diffusion.likelihood.solvers import Solver


class FlowLogProb(NamedTuple):
    """The log-density of a batch, (B,) nats, float64 on the host, and its cost in network evaluations per image."""

    log_prob: Tensor
    evaluations: int


@torch.no_grad()
def flow_log_prob(
    denoiser: Denoiser,
    x_t: Tensor,
    start_time: float,
    solver: Solver,
    trace: Trace,
    clip: float | None = None,
    class_label: Tensor | None = None,
) -> FlowLogProb:
    """log p(x_t) of images x_t (B, C, H, W) at time start_time in (0, 1), with p(x_T) = N(0, prior_std²).

    The network is evaluated in x_t's type. trace: computes the velocity and its divergence; clip: limit of x̂.
    """
    schedule = denoiser.schedule
    ends = schedule(torch.tensor([start_time, 1.0], dtype=torch.float64))
    first, last = torch.atan2(ends.sigma, ends.alpha).flatten().tolist()
    radius, last_radius = torch.hypot(ends.alpha, ends.sigma).flatten().tolist()

    def slope(z: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        level = schedule(torch.ones((), dtype=torch.float64)) if angle >= last else _level(denoiser, angle)

        def velocity(z: Tensor) -> Tensor:
            prediction = denoiser.at(z * cast_to(torch.hypot(level.alpha, level.sigma), z), level, clip, class_label)
            return math.cos(angle) * prediction.noise - math.sin(angle) * prediction.x

        return trace(velocity, z)

    z, log_volume, evaluations = solver(slope, x_t / radius, first, last)
    x_1 = last_radius * z.cpu().double()
    prior = Gaussian(torch.zeros_like(x_1), torch.tensor(2 * math.log(schedule.prior_std), dtype=torch.float64))
    scaling = x_t[0].numel() * math.log(last_radius / radius)  # log-volume of x_t -> z and z -> x_1
    return FlowLogProb(prior.log_prob(x_1) + log_volume + scaling, evaluations)


def _level(denoiser: Denoiser, angle: float) -> NoiseLevel:
    """The level whose σ/α is tan φ."""
    log_snr = torch.tensor(-2 * math.log(math.tan(angle)), dtype=torch.float64)
    return NoiseLevel(denoiser.schedule.time(log_snr), log_snr, *denoiser.schedule.scales(log_snr))


class ReplicatedMean(NamedTuple):
    """A mean over N images and their replicates, with two independent standard errors.

    mc_se: Monte Carlo, from the variance within images; image_se: over images, Monte Carlo variance subtracted.
    """

    mean: float
    mc_se: float
    image_se: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the population mean, from both errors by Student's t with N − 1 degrees of freedom."""
        known = [error for error in (self.mc_se, self.image_se) if not math.isnan(error)]
        half = float(stdtrit(self.images - 1, 0.975)) * math.hypot(*known)
        return self.mean - half, self.mean + half


def replicated_mean(values: Tensor) -> ReplicatedMean:
    """The mean of values (N, R) float64, N images in R replicates.

    Undefined standard errors are nan, that over images also where its variance is lost in the Monte Carlo variance.
    """
    images, replicates = values.shape
    draws = float(values.var(1).mean()) / replicates if replicates > 1 else math.nan
    raw = float(values.mean(1).var()) if images > 1 else math.nan
    resolved = raw > draws or raw == 0
    image_se = math.sqrt((raw - draws) / images if raw else 0.0) if resolved else math.nan
    return ReplicatedMean(float(values.mean()), math.sqrt(draws / images), image_se, images)
