"""The tables that a command prints at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from noising.commands.tables import print_summary, print_table
from noising.errors import ConfigError, printable
from noising.runs.folder import Run


@pytest.mark.parametrize("spread", [None, 0.0, 0.02])  # 0 as earlier versions wrote it
def test_a_spread_that_was_not_seen_is_no_error_of_zero(
    spread: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    card = dict.fromkeys(("estimator", "clip", "timesteps", "step"), 1)
    card |= {"images": 4, "evaluations": 1, "evaluations_of_the_full_sum": 1}
    numbers = {"test/bound": 3.5, "test/bound_mc_se": 0.4, "test/bound_image_se": spread}
    numbers |= {f"test/{name}_{end}": 3.5 for name in ("bound", "bound_population") for end in ("low", "high")}
    run.update(numbers, cards={"test/bound": card})
    print_summary(run)
    said = capsys.readouterr().out
    assert ("the Monte Carlo error hides how far" in said) == (not spread)
    assert ("for new images: 3.5" in said, "for these images: 3.5" in said) == (bool(spread), True)
    assert ("0.0200" in said, "0.0000" in said) == (bool(spread), False)


@pytest.mark.parametrize("limited", [True, False])
def test_an_error_that_would_cost_more_than_all_terms_is_beside_what_was_reached(
    limited: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    card = dict.fromkeys(("estimator", "clip", "timesteps", "step"), 1)
    card |= {"images": 4, "evaluations": 1, "evaluations_of_the_full_sum": 1}
    card |= {"limited_to_the_full_sum": limited, "stderr": 0.001}
    run.update({"test/bound": 3.5, "test/bound_mc_se": 0.0234}, cards={"test/bound": card})
    print_summary(run)
    said = capsys.readouterr().out
    assert ("bound.stderr=0.001 would cost more than all terms" in said) == limited
    assert ("with ± 0.0234" in said) == limited


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\a\x1b[2J", "]0;owned[2J"),
        ("a\nb\r\tc\u2028d\x85e", "a b  c d e"),
        ("\x9b31mred\x7f\x00", "31mred"),
        ("gpj\u202egnp.exe\u2069", "gpjgnp.exe"),
        ("x\udcff.png", "x?.png"),
        ("λ é 猫 \N{FAMILY}\u200d ±", "λ é 猫 \N{FAMILY}\u200d ±"),
    ],
)
def test_text_that_a_terminal_would_obey(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(ConfigError(f"data: {text}")) == f"data: {shown}"


def test_a_table_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """No markup of rich, no smiley, in any of its parts."""
    print_table("[red]t[/b]", ("", "[/b]\x1b[2J", "[bold]h"), [[":smile:", "[red]y", "a\x1b]0;b\a"]])
    said = capsys.readouterr().out
    for words in ("[red]t[/b]", "[/b][2J", "[bold]h", ":smile:", "[red]y", "a]0;b"):
        assert words in said
    assert "\x1b" not in said
