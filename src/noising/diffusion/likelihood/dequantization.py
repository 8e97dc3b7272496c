"""Uniform dequantization: a bound on the probability of grey levels from a density of real numbers.

A grey level is a cell of width Δ = 2/(L − 1) in [−1, 1]. Jensen's inequality over the position u in the cell gives

    −log P(x) ≤ E_u[−log p(x + uΔ)] − D log Δ,        u ~ U[−½, ½]^D

Theis et al., "A note on the evaluation of generative models" (2015), section 3.1. https://arxiv.org/abs/1511.01844
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import cast_to
from noising.diffusion.likelihood.divergences import Divergence
from noising.diffusion.likelihood.flow import flow_log_prob
from noising.diffusion.likelihood.solvers import Solver
from noising.errors import require
from noising.randomness import Streams


def dequantize(x: Tensor, uniform: Tensor, levels: int) -> Tensor:
    """x + uΔ for images x (B, C, H, W) on the grid of L grey levels; uniform: u + ½ in [0, 1), of x's shape."""
    return x + (uniform.to(x.device, x.dtype) - 0.5) * (2 / (levels - 1))


def offset_bits(levels: int) -> float:
    """−log₂ Δ, the term of the cell width in bits/dim: 6.9944 at 256 levels."""
    return -math.log2(2 / (levels - 1))


def bits_per_dim(log_prob: Tensor, dims: int, levels: int) -> Tensor:
    """−(log p + D log Δ)/(D log 2), in bits/dim, from log-densities (B,) in nats."""
    return offset_bits(levels) - log_prob / (dims * math.log(2))


class FlowBits(NamedTuple):
    """The dequantized likelihood of B images in R replicates, and its cost.

    bits: (B, R), bits/dim, float64 on the host; evaluations: the network's per image, over all replicates.
    """

    bits: Tensor
    evaluations: int


@dataclass(eq=False)
class FlowLikelihood:
    """The dequantized likelihood of a flow stopped at start_time, from R draws of u and of the probe per image.

    The model is the flow from N(0, prior_std²) at t = 1 to x_t at start_time, divided by α there. It is a proper
    density of images for any network, so the result is an upper bound on −log₂ P of the grey levels under that model,
    up to the solver's error. Where the noise at start_time is narrower than a cell, a model of grey levels has most of
    its mass on the levels and little between them, where u falls: the bound is valid, but loose. To clamp x̂ to
    [−clip, clip] changes the model.
    """

    solver: Solver
    divergence: Divergence
    start_time: float
    replicates: int = 2
    clip: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.start_time < 1, f"start_time must be between 0 and 1, got {self.start_time}")
        require(self.replicates >= 1, f"replicates must be at least 1, got {self.replicates}")
        require(self.clip is None or self.clip > 0, f"clip must be positive or null, got {self.clip}")

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        levels: int,
        uniform: Streams,
        probes: Streams,
        class_label: Tensor | None = None,
    ) -> FlowBits:
        """Evaluate images x (B, C, H, W) on the grid of L grey levels; uniform, probes: streams of each image."""
        alpha = denoiser.schedule(torch.tensor(self.start_time, dtype=torch.float64)).alpha
        dims, bits, evaluations = x[0].numel(), [], 0
        for _ in range(self.replicates):
            x_t = cast_to(alpha, x) * dequantize(x, uniform.uniform(x.shape[1:]), levels)
            trace = self.divergence.prepare(x, probes)
            found = flow_log_prob(denoiser, x_t, self.start_time, self.solver, trace, self.clip, class_label)
            bits.append(bits_per_dim(found.log_prob + dims * math.log(float(alpha)), dims, levels))
            evaluations += found.evaluations
        return FlowBits(torch.stack(bits, 1), evaluations)
