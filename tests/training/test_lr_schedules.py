"""The factors at the steps that decide a schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest

from noising.training.lr_schedules import constant, cosine, inverse_square_root
from tests.interchange.helpers import fixture


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


def test_the_inverse_square_root_is_that_of_edm2s_code() -> None:
    given = fixture("scalars/edm2_phema_lr_loss_sampler")
    images, expected = given.inputs["lr/nimg"].tolist(), given.outputs["lr/value"].tolist()
    found = [0.012 * inverse_square_root(n / 2048, 2048, 35_000, 10_000_000) for n in images]
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_inverse_square_root_rises_stays_and_falls() -> None:
    factors = [inverse_square_root(step, 10, decay_batches=40, warmup_images=100) for step in range(161)]
    assert factors[:11] == pytest.approx([step / 10 for step in range(11)])
    assert set(factors[10:41]) == {1.0}
    assert factors[160] == pytest.approx(0.5)


@pytest.mark.parametrize("option", ["decay_batches", "warmup_images"])
def test_an_inverse_square_root_of_nothing_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be above 0, got 0"):
        inverse_square_root(1, **{option: 0})
