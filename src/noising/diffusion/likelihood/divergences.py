"""The divergence ∇·v of a flow: exact, or the unbiased estimate eᵀ ∇v e with a random probe e, E[e eᵀ] = I.

Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1990); along a flow, with one e for the
whole of it, Grathwohl et al., "FFJORD" (2018). https://arxiv.org/abs/1810.01367
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from noising.diffusion.gaussian import per_image
from noising.randomness import Streams

Velocity = Callable[[Tensor], Tensor]  # z (B, C, H, W) -> v(z), an image's independent of the other images
Trace = Callable[[Velocity, Tensor], tuple[Tensor, Tensor]]  # (v, z (B, C, H, W)) -> (v(z), ∇·v(z) (B,))


def exact_trace(velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor]:
    """The trace of the Jacobian, by one backward pass per pixel."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        v = velocity(z)
        trace = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for pixel, component in enumerate(v.flatten(1).unbind(1)):
            (gradient,) = torch.autograd.grad(component.sum(), z, retain_graph=True)
            trace += gradient.flatten(1)[:, pixel]
    return v.detach(), trace


def probed_trace(probe: Tensor) -> Trace:
    """eᵀ ∇v e, by one backward pass. probe: e (B, C, H, W), of mean 0 and variance 1."""

    def trace(velocity: Velocity, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            v = velocity(z)
            (gradient,) = torch.autograd.grad((v * probe).sum(), z)
        return v.detach(), per_image(gradient * probe)

    return trace


class Divergence(ABC):
    """A method to compute ∇·v along a flow."""

    @abstractmethod
    def prepare(self, x: Tensor, streams: Streams) -> Trace:
        """The trace for one flow of images like x (B, C, H, W); random probes are drawn here, one stream per image."""

    @abstractmethod
    def backward_passes(self, dims: int) -> int:
        """Backward passes per evaluation, for images of D dimensions."""


class Exact(Divergence):
    """The trace itself, at D backward passes per evaluation: for small images."""

    def prepare(self, x: Tensor, streams: Streams) -> Trace:
        return exact_trace

    def backward_passes(self, dims: int) -> int:
        return dims


class Hutchinson(Divergence, ABC):
    """eᵀ ∇v e with one e per image, constant along its flow."""

    @abstractmethod
    def probe(self, x: Tensor, streams: Streams) -> Tensor:
        """e, in x's shape and type: independent, of mean 0 and variance 1."""

    def prepare(self, x: Tensor, streams: Streams) -> Trace:
        return probed_trace(self.probe(x, streams))

    def backward_passes(self, dims: int) -> int:
        return 1


class Rademacher(Hutchinson):
    """e = ±1: exact for a diagonal Jacobian, and of the least variance among independent probes."""

    def probe(self, x: Tensor, streams: Streams) -> Tensor:
        return (streams.uniform(x.shape[1:]) < 0.5).to(x) * 2 - 1


class Gaussian(Hutchinson):
    """e ~ N(0, I): variance 2‖S‖², with S the symmetric part of the Jacobian, diagonal included."""

    def probe(self, x: Tensor, streams: Streams) -> Tensor:
        return streams.normal(x.shape[1:]).to(x)
