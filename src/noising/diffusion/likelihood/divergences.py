"""∇·v of a flow: exactly, or by the unbiased estimate eᵀ ∇v e with E[e eᵀ] = I.

Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1990); along a flow, with one e for the
whole of it, Grathwohl et al., "FFJORD" (2018). https://arxiv.org/abs/1810.01367
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from noising.diffusion.gaussian import per_image
from noising.randomness import Streams

__all__ = ["Divergence", "Exact", "Gaussian", "Hutchinson", "Rademacher", "Trace", "exact_trace", "probed_trace"]


Velocity = Callable[[Tensor], Tensor]
Trace = Callable[[Velocity, Tensor], tuple[Tensor, Tensor]]
"""(v, z (B, C, H, W)) -> (v(z), ∇·v(z) (B,)); one image's velocity does not depend on the others."""


def exact_trace(velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of the Jacobian, one backward pass a pixel."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        v = velocity(z)
        trace = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for pixel, component in enumerate(v.flatten(1).unbind(1)):
            (gradient,) = torch.autograd.grad(component.sum(), z, retain_graph=True)
            trace += gradient.flatten(1)[:, pixel]
    return v.detach(), trace


def probed_trace(probe: Tensor) -> Trace:
    """eᵀ ∇v e, one backward pass. probe: e, (B, C, H, W), of mean 0 and variance 1."""

    def trace(velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            v = velocity(z)
            (gradient,) = torch.autograd.grad((v * probe).sum(), z)
        return v.detach(), per_image(gradient * probe)

    return trace


class Divergence(ABC):
    """How ∇·v is found along a flow."""

    @abstractmethod
    def prepare(self, x: Tensor, streams: Streams) -> Trace:
        """For one flow of images like x (B, C, H, W); what is drawn is drawn here, from one stream an image."""

    @abstractmethod
    def backward_passes(self, dims: int) -> int:
        """An evaluation, for images of so many dimensions."""


class Exact(Divergence):
    """The trace itself, D backward passes an evaluation: for few pixels."""

    def prepare(self, x: Tensor, streams: Streams) -> Trace:
        return exact_trace

    def backward_passes(self, dims: int) -> int:
        return dims


class Hutchinson(Divergence, ABC):
    """eᵀ ∇v e with one e an image, the same along its whole flow."""

    @abstractmethod
    def probe(self, x: Tensor, streams: Streams) -> Tensor:
        """e, in x's shape and type: independent, of mean 0 and variance 1."""

    def prepare(self, x: Tensor, streams: Streams) -> Trace:
        return probed_trace(self.probe(x, streams))

    def backward_passes(self, dims: int) -> int:
        return 1


class Rademacher(Hutchinson):
    """e = ±1: exact for a diagonal Jacobian, and the least variance of all independent probes."""

    def probe(self, x: Tensor, streams: Streams) -> Tensor:
        return torch.from_numpy(streams.uniform(x.shape[1:]) < 0.5).to(x) * 2 - 1


class Gaussian(Hutchinson):
    """e ~ N(0, I): variance 2‖S‖² of the Jacobian's symmetric part S, its diagonal included."""

    def probe(self, x: Tensor, streams: Streams) -> Tensor:
        return streams.normal(x.shape[1:]).to(x)
