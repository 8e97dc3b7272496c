"""docs/where.md: what it names is where it says."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.helpers import ROOT

PAGE = ROOT / "docs" / "where.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "](../" in line]


def test_it_is_one_screen() -> None:
    assert len(PAGE.read_text().splitlines()) <= 40
    assert len(ROWS) >= 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_paths_exist_and_hold_the_names_beside_them(row: str) -> None:
    files = [(PAGE.parent / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", row)]
    assert [file for file in files if not file.exists()] == []
    text = "\n".join(file.read_text() for file in files if file.is_file())
    text += "\n".join(inner.read_text() for file in files if file.is_dir() for inner in sorted(file.glob("*.py")))
    for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`", row):
        for part in name.split("."):
            assert part == "_target_" or re.search(rf"(?:def|class) {part}\b", text), name


def test_the_floors_are_those_that_are_held() -> None:
    (text,) = re.findall(r"^`__main__`.*?\.$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    floors = [re.findall(r"`(\w+)`", floor) for floor in re.split(r" >\s", text)]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = [re.findall(r"\w+", layer) for layer in contracts[0]["layers"]]
    assert [sorted(floor) for floor in floors] == [sorted(floor) for floor in held]
