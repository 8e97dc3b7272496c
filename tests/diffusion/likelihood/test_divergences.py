"""Traces of a Jacobian that is known: exact by components, unbiased by probes, of the variance the theory gives."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from noising.diffusion.likelihood.divergences import Divergence, Exact, Gaussian, Rademacher, exact_trace, probed_trace
from noising.randomness import Streams
from tests.diffusion.helpers import normals

A = normals(3, 3, seed=4)
SYMMETRIC = (A + A.T) / 2
TRACE = float(A.trace())


def linear(z: Tensor) -> Tensor:
    """v = A z on three pixels."""
    return (z.flatten(1) @ A.T).reshape(z.shape)


def streams(images: int) -> Streams:
    return Streams(0, "test", range(images))


def test_exact_trace_of_a_nonlinear_field() -> None:
    z = normals(5, 1, 1, 3)
    v, trace = exact_trace(lambda z: linear(z).sin(), z)
    torch.testing.assert_close(v, linear(z).sin())
    torch.testing.assert_close(trace, (linear(z).cos().flatten(1) * A.diag()).sum(1))
    assert not v.requires_grad


def test_probes_are_unbiased_over_all_signs() -> None:
    signs = torch.tensor(list(product([1.0, -1.0], repeat=3)), dtype=torch.float64).reshape(8, 1, 1, 3)
    _, traces = probed_trace(signs)(linear, normals(8, 1, 1, 3))
    assert float(traces.mean()) == pytest.approx(TRACE, abs=1e-12)


@pytest.mark.parametrize(
    ("divergence", "variance"),
    [
        (Rademacher(), 2 * float((SYMMETRIC - SYMMETRIC.diag().diag()).square().sum())),
        (Gaussian(), 2 * float(SYMMETRIC.square().sum())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_drawn_probes_are_unbiased_with_the_variance_of_theory(divergence: Divergence, variance: float) -> None:
    images = 8000
    z = normals(images, 1, 1, 3)
    _, traces = divergence.prepare(z, streams(images))(linear, z)
    assert abs(float(traces.mean()) - TRACE) < 4 * (variance / images) ** 0.5
    assert float(traces.var()) == pytest.approx(variance, rel=0.1)


def test_rademacher_probes_are_signs_in_the_images_type() -> None:
    x = torch.zeros(50, 1, 4, 4)
    probe = Rademacher().probe(x, streams(50))
    assert probe.dtype == torch.float32
    assert set(probe.flatten().tolist()) == {1.0, -1.0}


@pytest.mark.parametrize("divergence", [Rademacher(), Gaussian()], ids=lambda value: type(value).__name__)
def test_one_probe_a_flow_and_another_for_the_next(divergence: Divergence) -> None:
    z, drawn = normals(4, 1, 1, 3), streams(4)
    first, second = divergence.prepare(z, drawn), divergence.prepare(z, drawn)
    torch.testing.assert_close(first(linear, z)[1], first(linear, 2 * z)[1])
    assert not torch.allclose(first(linear, z)[1], second(linear, z)[1])


def test_cost_is_told() -> None:
    assert [part.backward_passes(64) for part in (Exact(), Rademacher(), Gaussian())] == [64, 1, 1]
