"""What a step costs beside the network: a few tensor operations, and no wait for a number."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from noising.diffusion.grids import karras, uniform
from noising.diffusion.parameterizations import Karras, Parameterization, Velocity
from noising.diffusion.samplers import DDIM, DPMPP2M, Ancestral, Heun, Sampler
from noising.diffusion.schedules import Cosine
from noising.diffusion.variances import FixedLarge, LearnedRange, ReverseVariance
from tests.diffusion.helpers import denoiser_of, normals

STEPS = 10


class Silent(nn.Module):
    """A network that costs nothing."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.said = torch.zeros(2, outputs, 4, 4)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.said


class Counted(TorchDispatchMode):
    """Notes every operation that reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def operations(sampler: Sampler, parameterization: Parameterization, variance: ReverseVariance) -> list[list[str]]:
    """Those of each step but the first, which makes the coefficients; drawing the noise is not counted."""
    denoiser = denoiser_of(Silent(variance.outputs), Cosine(1000), parameterization, variance)
    noise = normals(2, 1, 4, 4).float()
    path = sampler.path(denoiser, lambda: noise)
    next(path)
    steps = []
    for _ in range(STEPS - 1):
        with Counted() as counted:
            next(path)
        steps.append(counted.seen)
    return steps


@pytest.mark.parametrize(
    ("sampler", "variance", "most"),
    [
        (Ancestral(STEPS, uniform), FixedLarge(), 6),
        (Ancestral(STEPS, uniform), LearnedRange(), 10),
        (DDIM(STEPS, uniform), FixedLarge(), 5),
        (DDIM(STEPS, uniform, eta=0.5), FixedLarge(), 6),
        (DPMPP2M(STEPS, uniform), FixedLarge(), 6),
        (DPMPP2M(STEPS, uniform, stochastic=True), FixedLarge(), 7),
        (Heun(STEPS, partial(karras, timesteps=1000)), FixedLarge(), 10),
    ],
    ids=["ancestral", "learned", "ddim", "ddim_eta", "dpmpp_2m", "dpmpp_2m_sde", "heun"],
)
def test_operations_of_a_step(sampler: Sampler, variance: ReverseVariance, most: int) -> None:
    """At most ten, of them one look and, in Heun's method, a second; Karras' network scales its input besides."""
    looks = 2 if isinstance(sampler, Heun) else 1
    for parameterization, scaling in ((Velocity(), 0), (Karras(), looks)):
        for step in operations(sampler, parameterization, variance):
            assert len(step) <= most + scaling, step
            assert "aten._local_scalar_dense.default" not in step  # the host waits for the device
    assert most <= 10
