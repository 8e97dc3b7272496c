"""The likelihood of grey levels under a density of real numbers, by uniform dequantization.

A grey level is a cell of width Δ = 2/(L − 1) in [−1, 1], and Jensen's inequality over the place u in it gives

    −log P(x) ≤ E_u[−log p(x + uΔ)] − D log Δ,        u ~ U[−½, ½]^D

Theis et al., "A note on the evaluation of generative models" (2015), section 3.1. https://arxiv.org/abs/1511.01844
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import cast_to
from noising.diffusion.likelihood.divergences import Divergence
from noising.diffusion.likelihood.flow import flow_log_prob
from noising.diffusion.likelihood.solvers import Solver
from noising.randomness import Streams

__all__ = ["FlowBits", "FlowLikelihood", "bits_per_dim", "dequantize", "offset_bits"]


def dequantize(x: Tensor, places: Tensor, levels: int) -> Tensor:
    """x + uΔ for images x (B, C, H, W) on the grid of L grey levels; places: u + ½ in [0, 1), of x's shape."""
    return x + (places.to(x.device, x.dtype) - 0.5) * (2 / (levels - 1))


def offset_bits(levels: int) -> float:
    """−log₂ Δ, what the cells' width adds to bits/dim: 6.9944 at 256 levels."""
    return -math.log2(2 / (levels - 1))


def bits_per_dim(log_prob: Tensor, dims: int, levels: int) -> Tensor:
    """−(log p + D log Δ)/(D log 2) of log-densities (B,) in nats."""
    return offset_bits(levels) - log_prob / (dims * math.log(2))


class FlowBits(NamedTuple):
    """What was evaluated for B images."""

    bits: Tensor
    """(B, R): bits/dim in each of R replicates, float64 on the host."""
    evaluations: int
    """Of the network, an image, all replicates together."""


class FlowLikelihood:
    """The dequantized likelihood of a flow stopped at start_time, R independent draws of u and of the probe an image.

    The model is the flow from N(0, prior_std²) at t = 1 to x_t at start_time, divided by α there. It is a proper
    density of images, whatever the network, so the number is a valid upper bound on −log₂ P of the grey levels under
    that model, up to the solver's error. Stopped too early (noise below the cells' width) a model of grey levels
    puts its mass on the levels and little between them, where u falls: the bound is valid, but loose.
    """

    def __init__(
        self,
        solver: Solver,
        divergence: Divergence,
        start_time: float,
        replicates: int = 2,
        clip: float | None = None,
    ) -> None:
        """clip: x̂ is kept in [−clip, clip], which changes the model."""
        if not 0 < start_time < 1:
            raise ValueError(f"start_time must be between 0 and 1, got {start_time}")
        if replicates < 1:
            raise ValueError(f"replicates must be at least 1, got {replicates}")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be positive or null, got {clip}")
        self.solver = solver
        self.divergence = divergence
        self.start_time = start_time
        self.replicates = replicates
        self.clip = clip

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        levels: int,
        places: Streams,
        probes: Streams,
        class_label: Tensor | None = None,
    ) -> FlowBits:
        """Images x (B, C, H, W) on the grid of L grey levels; one stream an image for u, and one for the probe."""
        alpha = denoiser.schedule(torch.tensor(self.start_time, dtype=torch.float64)).alpha
        dims, bits, evaluations = x[0].numel(), [], 0
        for _ in range(self.replicates):
            image = dequantize(x, torch.from_numpy(places.uniform(x.shape[1:])), levels)
            trace = self.divergence.prepare(x, probes)
            x_t = cast_to(alpha, x) * image
            found = flow_log_prob(denoiser, x_t, self.start_time, self.solver, trace, self.clip, class_label)
            bits.append(bits_per_dim(found.log_prob + dims * math.log(float(alpha)), dims, levels))
            evaluations += found.evaluations
        return FlowBits(torch.stack(bits, 1), evaluations)
