"""The axis and the lines of a plot of samplers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noising.plots.sweep import draw, series
from noising.runs.rows import Row

pytestmark = pytest.mark.usefixtures("figures")


def row(status: str = "finished", fd: float = 1.0, evaluations: int = 5, **swept: str) -> Row:
    numbers = {"test/fd": fd, "test/evaluations_per_image": evaluations, "test/seconds_per_image": 0.1}
    return {**{name.replace("__", "."): value for name, value in swept.items()}, "status": status, **numbers}


def test_what_stands_on_the_axis(tmp_path: Path) -> None:
    steps = [row(sampler=s, sampler__steps=str(n), evaluations=n) for n in (20, 5) for s in ("ddim", "heun")]
    axis, lines = series(steps)
    assert axis == "test/evaluations_per_image"
    assert {name: [r[axis] for r in line] for name, line in lines.items()} == {"ddim": [5, 20], "heun": [5, 20]}
    scales = [row(checkpoint="A", grid=g, guidance__scale=s) for g in ("karras", "uniform") for s in ("3", "1.5")]
    axis, lines = series(scales)
    assert axis == "guidance.scale"
    assert {name: [r[axis] for r in line] for name, line in lines.items()} == {
        "grid=karras": ["1.5", "3"],
        "grid=uniform": ["1.5", "3"],
    }
    for number, table in enumerate((steps, scales)):
        draw(tmp_path / f"{number}.png", table, {})
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 10
