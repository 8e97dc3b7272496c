"""The tables that a command prints at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from noising.commands.tables import print_summary
from noising.runs.folder import Run


@pytest.mark.parametrize("spread", [None, 0.0, 0.02])  # 0 as earlier versions wrote it
def test_a_spread_that_was_not_seen_is_no_error_of_zero(
    spread: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    card = dict.fromkeys(("estimator", "clip", "timesteps", "step"), 1)
    card |= {"images": 4, "evaluations": 1, "evaluations_of_the_full_sum": 1}
    numbers = {"test/bound": 3.5, "test/bound_mc_se": 0.4, "test/bound_image_se": spread}
    run.update(numbers, cards={"test/bound": card})
    print_summary(run)
    said = capsys.readouterr().out
    assert ("cannot be told from the Monte Carlo error" in said) == (not spread)
    assert ("0.0200" in said, "0.0000" in said) == (bool(spread), False)
