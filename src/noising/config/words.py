"""Words of the command line: a value in Hydra's grammar, and the word for a shell."""

import re
import shlex
from pathlib import Path

QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
"""Hydra's pattern of a value in quotes."""
# neither a number nor one of Hydra's own words
_BARE = re.compile(r"(?!(?i:null|true|false|nan|inf)$)(?=[A-Za-z_]|.*/)[\w/.:@+-]+", re.ASCII)


def quoted(text: str) -> str:
    """The text as one value of Hydra's grammar: as it is where that reads it so, else in quotes.

    Within quotes a backslash counts only before a quote.
    """
    if _BARE.fullmatch(text):
        return text
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + (r"\"" if found[2] else ""), text) + '"'


def unquoted(value: str) -> str:
    """The text that a value of Hydra's grammar stands for, if it is in quotes; else the value."""
    if not re.fullmatch(QUOTED, value, re.DOTALL):
        return value
    return re.sub(rf"(\\+)({value[0]}|\Z)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1])


def shell_word(option: str, path: str | Path) -> str:
    """`option=path`, to be pasted in a shell behind a command."""
    text = str(path)
    return shlex.quote(f"{option}={quoted(f'./{text}' if text.startswith('~') else text)}")
