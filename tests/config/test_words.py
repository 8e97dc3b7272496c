"""A text is one value of Hydra's grammar, and one word of a shell's, whatever characters it holds."""

from __future__ import annotations

import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from noising.config.words import quoted, shell_word, unquoted

BARE = ("runs/2026-01-31/12-00-00", "sweeps/noon/0_seed-0", "a.npz", "../a:b@c+d", "nano", "5/1e5")
ODD = (
    *("0_seed=0", "~/a", "é", "(", "#", "50%", "a,b", "a b", " a", "a ", "it's", "$x", "[a]", "{a", "a\n"),
    *('"a"', "'a'", "a\\", '\\"', '\\\\"a', "\\'", ""),
    *("5", "2026_01_31", "1e5", "-1", ".5", "inf", "NaN", "null", "True"),
)


@pytest.mark.parametrize("text", [*BARE, *ODD])
def test_hydra_reads_a_value_as_the_text(text: str) -> None:
    value = quoted(text)
    assert (value == text) == (text in BARE)
    override, listed = OverridesParser.create().parse_overrides([f"key={value}", f"key=[{value},{value}]"])
    assert (override.value(), type(override.value()), listed.value()) == (text, str, [text, text])
    assert unquoted(value) == text


@pytest.mark.parametrize("value", ["'a b'", r"'it\'s'", r'"\\\"a\\"', r"'a\b'", '""', r"'\\\\'"])
def test_quotes_are_taken_off_as_hydra_does(value: str) -> None:
    assert unquoted(value) == OverridesParser.create().parse_override(f"key={value}").value()


@pytest.mark.parametrize("value", ["'a", "a'", '"a"b"', r"'a\'", "'a','b'"])
def test_what_hydra_does_not_read_as_quoted_is_left(value: str) -> None:
    assert unquoted(value) == value


def test_a_shell_reads_a_word_as_one() -> None:
    words = [shell_word("from", path) for path in ("a/b", 'it\'s $HOME "é"', "~", "`ls`")]
    script = f"printf '%s\\n' {' '.join(words)}"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["from=a/b", r'from="it' + r"'s $HOME \"é\"" + '"', 'from="./~"', 'from="`ls`"']
