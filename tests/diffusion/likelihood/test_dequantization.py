"""Grey levels under a flow: the cells' width and place, on every geometry, against Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch

from noising.diffusion.likelihood.dequantization import FlowLikelihood, bits_per_dim, dequantize, offset_bits
from noising.diffusion.likelihood.divergences import Exact, Rademacher
from noising.diffusion.likelihood.solvers import RungeKutta4
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.schedules import Cosine, LogLinearSigma, RectifiedFlow, Schedule
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import gaussian
from noising.randomness import Streams
from tests.diffusion.helpers import images, normals

STD = 0.2
SCHEDULES = [RectifiedFlow(), Cosine(1000), LogLinearSigma(0.0005, 1e4)]


def test_places_fill_the_cell_around_its_level() -> None:
    x = images(2, levels=17)
    spread = torch.stack([dequantize(x, torch.full_like(x, place), 17) for place in (0.0, 0.5, 1.0)])
    torch.testing.assert_close(spread[0], x - 1 / 16)
    torch.testing.assert_close(spread[1], x)
    torch.testing.assert_close(spread[2], x + 1 / 16)


def test_offset_at_256_levels() -> None:
    assert offset_bits(256) == pytest.approx(6.9944, abs=5e-5)


def test_a_uniform_density_has_the_bits_of_its_levels() -> None:
    """On [−1 − Δ/2, 1 + Δ/2] each of L levels has probability 1/L, and uniform dequantization is exact."""
    for levels in (2, 17, 256):
        log_prob = torch.tensor([-5 * math.log(2 + 2 / (levels - 1))], dtype=torch.float64)
        assert float(bits_per_dim(log_prob, 5, levels)) == pytest.approx(math.log2(levels))


def flow_bits(
    schedule: Schedule, x: torch.Tensor, levels: int, ratio: float, divergence: Rademacher | Exact
) -> torch.Tensor:
    denoiser = oracle_denoiser(gaussian(STD), schedule, Velocity(), FixedSmall())
    start = float(schedule.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)))
    flow = FlowLikelihood(RungeKutta4(50), divergence, start)
    places, probes = (Streams(0, use, range(len(x))) for use in ("places", "probes"))
    found = flow(denoiser, x, levels, places, probes)
    assert found.bits.shape == (len(x), 2)
    assert found.evaluations == 2 * 200
    return found.bits


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_fine_grid_has_the_discrete_entropy(schedule: Schedule) -> None:
    """Images of N(0, s²) rounded to 256 levels: h/log 2 − log₂ Δ, but for (Δ/s)² of Jensen's gap and 1e-3² of noise."""
    x = ((STD * normals(1500, 1, 1, 3) + 1) * 127.5).round() / 127.5 - 1
    bits = flow_bits(schedule, x, 256, 1e-3, Rademacher()).mean(1)
    expected = gaussian(STD).entropy / math.log(2) + offset_bits(256)
    assert abs(float(bits.mean()) - expected) < 4 * float(bits.std()) / len(bits) ** 0.5 + 3e-4


@pytest.mark.parametrize("ratio", [0.01, 0.3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_coarse_grid_has_jensens_bound(schedule: Schedule, ratio: float) -> None:
    """Given the images, E_u[−log₂ p(x + uΔ)] has a formula; p is the data's density with noise of std σ/α added."""
    levels, delta, variance = 17, 2 / 16, STD**2 + ratio**2
    x = ((STD * normals(1000, 1, 1, 3) + 0.25 + 1) * 8).round() / 8 - 1  # off the middle, so that a shift shows
    bits = flow_bits(schedule, x, levels, ratio, Exact())
    square = x.square().flatten(1).mean(1) + delta**2 / 12
    expected = (0.5 * math.log(2 * math.pi * variance) + square / (2 * variance)) / math.log(2) - math.log2(delta)
    off = bits.mean(1) - expected
    assert abs(float(off.mean())) < 4 * float(off.std()) / len(off) ** 0.5 + 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_one_images_bits_are_those_of_its_places(schedule: Schedule) -> None:
    """At the very places that are drawn, where a third of the pixel is noise, each replicate by the closed form."""
    levels, ratio, x = 17, 0.5, images(1, levels=17)
    bits = flow_bits(schedule, x, levels, ratio, Exact())[0]
    uniform = Streams(0, "places", range(1))
    variance = STD**2 + ratio**2
    for found in bits:
        place = dequantize(x, uniform.uniform(x.shape[1:]), levels)
        nats = 0.5 * math.log(2 * math.pi * variance) + float(place.square().mean()) / (2 * variance)
        assert float(found) == pytest.approx(nats / math.log(2) - math.log2(2 / 16), abs=2e-4)


def test_what_cannot_be_is_refused() -> None:
    for options, words in (
        ({"start_time": 0.0}, "start_time must be between 0 and 1, got 0"),
        ({"start_time": 0.1, "replicates": 0}, "replicates must be at least 1, got 0"),
        ({"start_time": 0.1, "clip": -1.0}, "clip must be positive or null, got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            FlowLikelihood(RungeKutta4(1), Exact(), **options)  # type: ignore[arg-type]
