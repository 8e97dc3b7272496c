"""The pages of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from noising.cli.commands import COMMANDS
from tests.helpers import ROOT

README = ROOT / "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`")


class PageCommand(NamedTuple):
    """A command of a page: its name and words, and whether the page calls it short."""

    name: str
    words: tuple[str, ...]
    short: bool

    def __str__(self) -> str:
        return " ".join((self.name, *self.words))


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages, or all."""
    return [body for language, body in FENCE.findall(PAGES[page]) if not languages or language in languages]


def command_of(text: str) -> PageCommand | None:
    """`noising NAME ...`, `python train.py ...` or `python scripts/NAME.py ...`, or None."""
    code, _, comment = text.partition(" # ")
    if not code.startswith(("noising ", "python train.py", "python scripts/")):
        return None
    start, script, *words = shlex.split(" ".join(code.split()))
    name = script if start == "noising" else Path(script).stem
    return PageCommand(name, tuple(words), comment.strip().startswith("short:")) if name in COMMANDS else None


def commands(page: str) -> list[PageCommand]:
    """The commands of a page: those in its blocks, and those with options in its text."""
    lines = [line for block in blocks(page, "sh", "bash") for line in block.splitlines()]
    inline = [command_of(text) for text in INLINE.findall(FENCE.sub("", PAGES[page]))]
    whole = [*map(command_of, lines), *(command for command in inline if command and command.words)]
    return [command for command in whole if command]
