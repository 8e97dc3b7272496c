"""The baselines against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from noising.data.baselines import histogram_bits, uniform_bits
from noising.data.digits import Digits


def test_uniform_bits() -> None:
    assert uniform_bits(256) == 8.0
    assert uniform_bits(17) == pytest.approx(4.087462841250339, abs=1e-12)


def test_histogram_bits_of_two_pixels_by_hand() -> None:
    # Two pixels of two levels. Pixel 0 is 0, 0, 0: P(0) = 3.5 / 4. Pixel 1 is 0, 1, 1: P(1) = 2.5 / 4.
    train = torch.tensor([[0, 0], [0, 1], [0, 1]], dtype=torch.uint8).view(3, 1, 1, 2)
    test = torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8).view(2, 1, 1, 2)
    expected = -(math.log2(3.5 / 4) + math.log2(0.5 / 4) + 2 * math.log2(2.5 / 4)) / 4
    assert histogram_bits(train, test, levels=2) == pytest.approx(expected, abs=1e-12)


def test_histogram_bits_of_many_images() -> None:
    train = torch.zeros(5000, 1, 1, 1, dtype=torch.uint8)
    expected = -math.log2((5000 + 1 / 4) / 5001)
    assert histogram_bits(train, train, levels=4) == pytest.approx(expected, abs=1e-12)


def test_digits_cost_what_their_histogram_says() -> None:
    data = Digits(batch_size=128)
    data.setup()
    assert histogram_bits(data.train.pixels, data.test.pixels, data.levels) == pytest.approx(2.436, abs=0.001)
