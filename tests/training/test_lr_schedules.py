"""The factors at the steps that decide a schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest

from noising.training.lr_schedules import constant, cosine


def test_cosine_warms_up_falls_and_ends() -> None:
    as_scalars = [cosine(step, max_steps=110, warmup=10) for step in range(111)]
    assert as_scalars[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert as_scalars[10] == 1
    assert as_scalars[60] == pytest.approx(0.5)
    assert as_scalars[110] == pytest.approx(0, abs=1e-15)
    assert all(later < earlier for earlier, later in pairwise(as_scalars[10:]))
    assert cosine(110, max_steps=110, final=0.1) == pytest.approx(0.1)
    assert cosine(500, max_steps=110, warmup=10) == pytest.approx(0, abs=1e-15)


def test_constant_warms_up_and_stays() -> None:
    assert [constant(step, warmup=4) for step in (0, 3, 4, 1000)] == pytest.approx([0.2, 0.8, 1, 1])
    assert constant(0) == 1
