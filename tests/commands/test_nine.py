"""`experiment=nine` is one command: nine trainings, all finite, and a table of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from tests.helpers import SMALL, Command, read_table


@pytest.mark.slow
def test_all_nine_train_and_stand_in_one_table(noising: Command, tmp_path: Path) -> None:
    done = noising("train", "experiment=nine", *SMALL, "hydra.sweep.dir=nine")
    assert done.code == 0, done.err
    rows = read_table(tmp_path / "nine" / "sweep.csv")
    spaces = ("clean_image", "epsilon", "velocity")
    pairs = [(row["parameterization"], row["parameterization@objective.compared"]) for row in rows]
    assert sorted(pairs) == sorted(itertools.product(spaces, repeat=2))
    assert all(row["status"] == "finished" and math.isfinite(float(row["test/bound"])) for row in rows)
    assert (done.out + done.err).count("the largest weight") == 4
