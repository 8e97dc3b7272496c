"""A sampler from a config: where its steps begin."""

from __future__ import annotations

import pytest

from noising.config.theory import build_sampler
from noising.diffusion.schedules import Cosine
from tests.helpers import composed


@pytest.mark.parametrize(
    ("grid", "steps", "begins"),
    [("leading", 1, "0.001"), ("leading", 600, "0.6"), ("leading", 10, ""), ("uniform", 1, ""), ("quadratic", 50, "")],
)
def test_a_grid_that_begins_far_from_noise_says_so(
    grid: str, steps: int, begins: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed(f"grid={grid}", "sampler=ddim", f"sampler.steps={steps}")
    build_sampler(config, 1000, Cosine(1000))
    said = [record.getMessage() for record in caplog.records]
    expected = f"sampling begins at t = {begins}, but x_T is drawn for t = 1: use a grid that begins at 1"
    assert said == ([expected] if begins else [])
