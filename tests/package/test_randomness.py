"""Draws depend on their key alone; different keys are different streams."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from noising import randomness
from noising.randomness import (
    Streams,
    drops_out,
    fused_uniform,
    generator,
    may_draw,
    philox,
    plain_uniform,
    seed_global_generators,
)


def test_equal_keys_draw_equal_numbers_and_others_do_not() -> None:
    keys = [
        (seed, purpose, *place)
        for seed in (0, 1, 2**40)
        for purpose in ("noise", "times")
        for place in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
    ]
    drawn = [tuple(generator(*key).integers(0, 2**63, 2)) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [tuple(generator(*key).integers(0, 2**63, 2)) for key in keys]


def test_no_collisions_where_32_bits_would_have_two() -> None:
    """131,072 streams: of as many 32-bit seeds about two pairs would be equal."""
    words = {int(generator(0, "sample", index).bit_generator.random_raw()) for index in range(2**17)}
    assert len(words) == 2**17


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFFFFFFFFFF, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(key: int, counter: int, words: tuple[int, ...]) -> None:
    """Random123, examples/kat_vectors: of counters whose upper half is 0, or all ones like the lower."""
    upper = torch.tensor(counter >> 63 & 1) * 0xFFFFFFFF
    found = philox(key, torch.tensor([counter]), upper)
    assert tuple(found[0].tolist()) == words


def test_the_fused_kernel_gives_the_plain_numbers() -> None:
    if not hasattr(torch, "_philox_uniform_"):
        pytest.skip("this version of torch has no such kernel")
    first = torch.tensor([0, 7, 1 << 32, (1 << 62) + 5])
    for key in (0, 1, 2**63 + 17, 2**64 - 1):
        assert torch.equal(fused_uniform(key, first, 37), plain_uniform(key, first, 37))


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    """Seeds, purposes, places and indices that differ by one, and the next draw of a stream."""
    keys = itertools.product((0, 1), ("noise", "flips"), (0, 1))
    streams = [Streams(seed, purpose, range(2), "cpu", place) for seed, purpose, place in keys]
    drawn = torch.cat([s.normal((20_000,)) for s in streams] + [streams[0].normal((20_000,))])
    correlation = np.corrcoef(drawn.numpy())[np.triu_indices(len(drawn), 1)]
    assert np.abs(correlation).max() < 4.8 / 20_000**0.5
    halves = np.corrcoef(drawn.reshape(2 * len(drawn), -1).numpy())[np.triu_indices(2 * len(drawn), 1)]
    assert np.abs(halves).max() < 5 / 10_000**0.5  # within a row too: cosines, then sines


def test_normal_numbers_are_standard_normal() -> None:
    drawn = Streams(0, "noise", range(200)).normal((10_000,)).double().flatten()
    count = len(drawn)
    assert abs(drawn.mean().item()) < 4 / count**0.5
    assert abs(drawn.var().item() - 1) < 4 * (2 / count) ** 0.5
    assert abs((drawn**4).mean().item() - 3) < 4 * (96 / count) ** 0.5
    assert scipy.stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
    assert 4.5 < drawn.abs().max().item() < 5.8


def test_uniform_numbers_are_uniform() -> None:
    drawn = Streams(0, "noise", range(200)).uniform((10_001,)).double().flatten()
    assert drawn.min().item() >= 0
    assert drawn.max().item() < 1
    assert scipy.stats.kstest(drawn.numpy(), "uniform").pvalue > 1e-3


def test_the_smallest_uniform_number_gives_a_finite_normal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """u = 0 comes once in 16.8 million numbers."""
    for uniform, normal in ((0.0, 0.0), (1 - 2.0**-24, (48 * np.log(2)) ** 0.5)):
        made = lambda key, first, blocks, value=uniform: torch.full((len(first), 4 * blocks), value)  # noqa: E731
        monkeypatch.setattr(randomness, "_uniform_on", lambda kind, made=made: made)
        drawn = Streams(0, "noise", range(2)).normal((4,))
        torch.testing.assert_close(drawn[:, :2], torch.full((2, 2), normal))


def test_where_no_kernel_serves_the_numbers_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Streams(0, "noise", range(3)).normal((5,))
    for broken in (lambda *given: torch.zeros(2, 8), lambda *given: torch.missing()):  # type: ignore[attr-defined]
        monkeypatch.setattr(randomness, "fused_uniform", broken)
        randomness._uniform_on.cache_clear()
        assert randomness._uniform_on("cpu") is plain_uniform
        assert torch.equal(Streams(0, "noise", range(3)).normal((5,)), expected)
    randomness._uniform_on.cache_clear()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_triton_kernel_gives_the_plain_numbers() -> None:
    """In its interpreter, which must be chosen before it is imported."""
    script = (
        "import torch; from noising.philox_kernel import triton_uniform; from noising.randomness import plain_uniform\n"
        "first = torch.tensor([0, 7, 1 << 32, (1 << 62) + 5])\n"
        "keys = (0, 1, 2**63 + 17, 2**64 - 1)\n"
        "assert all(torch.equal(triton_uniform(k, first, 37), plain_uniform(k, first, 37)) for k in keys)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 8, 8), (3, 32, 32), (5, 7, 11), (1, 28, 28)])
def test_an_images_stream_does_not_know_its_neighbours(shape: tuple[int, ...]) -> None:
    """Bitwise, though the elementary functions of a long row go by vectors."""
    indices = [*range(20), 2**31 - 1]
    together, alone = Streams(3, "sample", indices), [Streams(3, "sample", [index]) for index in indices]
    for draw in ("normal", "uniform", "normal"):
        assert torch.equal(getattr(together, draw)(shape), torch.cat([getattr(s, draw)(shape) for s in alone]))
    assert len(together) == len(indices)


def test_chosen_streams_go_on_alone() -> None:
    """Those of `rows` take their next numbers, twice where they come twice; the others stay where they are."""
    chosen, whole = Streams(3, "sample", range(4)), Streams(3, "sample", range(4))
    first, second, third = (whole.normal((1, 8, 8)) for _ in range(3))
    assert torch.equal(
        chosen.normal((1, 8, 8), torch.tensor([2, 0, 2, 2])), torch.stack([first[2], first[0], second[2], third[2]])
    )
    assert torch.equal(
        chosen.normal((1, 8, 8)), torch.stack([second[0], first[1], whole.normal((1, 8, 8))[2], first[3]])
    )


def test_a_range_of_indices_is_their_list() -> None:
    ranged, listed = Streams(0, "noise", range(5, 20, 3)), Streams(0, "noise", [5, 8, 11, 14, 17])
    assert torch.equal(ranged.normal((7,)), listed.normal((7,)))


@pytest.mark.gpu
def test_a_gpu_draws_what_a_cpu_draws() -> None:
    host, device = Streams(0, "noise", range(64)), Streams(0, "noise", range(64), "cuda")
    assert torch.equal(host.uniform((3, 32, 32)), device.uniform((3, 32, 32)).cpu())
    torch.testing.assert_close(device.normal((3, 32, 32)).cpu(), host.normal((3, 32, 32)), rtol=1e-5, atol=2e-6)


@pytest.mark.gpu
def test_a_gpus_noise_is_made_there() -> None:
    """Nothing is copied from the host, and nothing waits."""
    Streams(0, "noise", range(64), "cuda").normal((3, 32, 32))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        Streams(0, "noise", range(64), "cuda", 1).normal((3, 32, 32))
        torch.cuda.synchronize()
    assert not [event.key for event in profile.key_averages() if "Memcpy" in event.key]


@pytest.mark.parametrize(
    ("layer", "drops"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout2d(0.1), True),
        (nn.Dropout(0), False),
        (nn.RReLU(), True),
        (nn.LSTM(2, 2, 2, dropout=0.5), True),
        (nn.MultiheadAttention(4, 2, dropout=0.5), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.Conv2d(1, 1, 1), False),
        (nn.GroupNorm(1, 1), False),
    ],
)
def test_layers_that_draw_from_the_global_generators_are_known(layer: nn.Module, drops: bool) -> None:
    assert drops_out(layer) == may_draw(layer) == drops


def test_layers_of_others_may_draw() -> None:
    class Theirs(nn.Module):
        pass

    assert may_draw(Theirs())
    assert not drops_out(Theirs())


def test_dropout_is_keyed() -> None:
    x = torch.ones(1000)

    def dropped(*key: int) -> torch.Tensor:
        seed_global_generators(0, "dropout", *key)
        return torch.nn.functional.dropout(x, 0.5)

    assert torch.equal(dropped(1, 0, 0), dropped(1, 0, 0))
    assert not torch.equal(dropped(1, 0, 0), dropped(1, 0, 1))
