"""Every schedule in turn."""

from __future__ import annotations

import pytest

from noising.diffusion.schedules import Schedule
from tests.diffusion.helpers import SCHEDULES


@pytest.fixture(params=["linear", "cosine", "sigmoid_alpha_bar", "linear_log_snr", "shifted"], ids=str)
def preserving(request: pytest.FixtureRequest) -> Schedule:
    """Schedules of preserved variance that end with some signal, as the papers' formulas of before 2022 assume."""
    return SCHEDULES[request.param]


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]
