"""Draws depend on their key alone; different keys are different streams."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from noising.randomness import Streams, generator, normal, seed_global_generators


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


def test_ranks_steps_and_micro_batches_are_uncorrelated() -> None:
    draws = [normal((20_000,), 0, "noise", *place).numpy() for place in itertools.product((0, 1), repeat=3)]
    correlation = np.corrcoef(draws)[np.triu_indices(8, 1)]
    assert np.abs(correlation).max() < 4.5 / 20_000**0.5


def test_normal_numbers_are_standard_normal() -> None:
    drawn = normal((200_000,), 0, "noise").double()
    assert abs(drawn.mean().item()) < 4 / 200_000**0.5
    assert abs(drawn.var().item() - 1) < 4 * (2 / 200_000) ** 0.5
    assert abs((drawn**4).mean().item() - 3) < 4 * (96 / 200_000) ** 0.5


def test_an_images_stream_does_not_know_its_neighbours() -> None:
    together, alone = Streams(3, "sample", [5, 17, 2]), Streams(3, "sample", [17])
    for shape in ((1, 8, 8), (2, 3), (1, 8, 8)):
        assert torch.equal(together.normal(shape)[1], alone.normal(shape)[0])
    assert (together.uniform((4,))[1] == alone.uniform((4,))[0]).all()
    assert len(together) == 3


def test_a_short_draw_is_the_beginning_of_a_long_one() -> None:
    pieces, whole = Streams(3, "sample", [5, 17]), Streams(3, "sample", [5, 17])
    drawn = torch.cat([pieces.normal((length,)) for length in (1, 2, 4, 9)], dim=1)
    assert torch.equal(drawn, whole.normal((16,)))


def test_dropout_is_keyed() -> None:
    x = torch.ones(1000)

    def dropped(*key: int) -> torch.Tensor:
        seed_global_generators(0, "dropout", *key)
        return torch.nn.functional.dropout(x, 0.5)

    assert torch.equal(dropped(1, 0, 0), dropped(1, 0, 0))
    assert not torch.equal(dropped(1, 0, 0), dropped(1, 0, 1))
