"""README.md is short, its tree is the real one, its example and numbers are those of docs/, and CI runs its tests."""

from __future__ import annotations

import re

import pytest

from tests.helpers import ROOT
from tests.package.pages import PAGES, README, blocks, commands

TEXT = README.read_text()


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def table(text: str) -> list[list[str]]:
    """The cells of a page's first table, without its headings."""
    first = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert first is not None
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in first[0].splitlines()[2:]]


def test_it_is_short() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120
    assert len(TEXT.split()) <= 1200
    assert TEXT.count("![") == 2


def test_the_two_commands_stand_alone_in_the_first_block() -> None:
    lines = blocks("README.md")[0].splitlines()
    assert [line.split(" && ")[-1].split("#")[0].strip() for line in lines] == ["python train.py", "pytest"]


def test_the_idea_is_four_sentences() -> None:
    sentences = re.findall(r"^\d\. (.+?[.])$(?=\n\d\.|\n\n)", section("The idea"), re.MULTILINE | re.DOTALL)
    assert len(sentences) == 4
    assert [sentence for sentence in sentences if re.search(r"\.\s", sentence)] == []


def test_recipes_are_those_of_the_table_in_docs() -> None:
    mine, theirs = table(section("The recipes")), table(PAGES["docs/parts.md"])
    assert [len(row) for row in mine] == [4] * len(theirs)
    names = [re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", row[0]) for row in theirs]
    assert [row[0] for row in mine] == names
    assert [row[2] for row in mine] == [row[7] for row in theirs]
    experiment = re.compile(r"experiment=(\w+)")
    assert [experiment.findall(row[1]) for row in mine] == [experiment.findall(row[8]) for row in theirs]


def test_python_is_that_of_docs_where_it_is_run() -> None:
    example, part = blocks("README.md", "python")
    assert example == blocks("docs/python.md", "python")[0]
    (imports, schedule) = part.split("\n\n\n")
    assert schedule.strip() in blocks("docs/extending.md", "python")[0]
    assert set(imports.splitlines()) == {"import noising as nz", "from torch import Tensor"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_tree_is_the_real_one(page: str) -> None:
    (tree,) = (block for block in blocks(page, "") if "src/noising/" in block)
    lines = tree.splitlines()
    assert len(lines) >= 12
    for line in lines:
        match = re.match(r"(  )?([\w./]+)(?:  |$)", line)
        assert match is not None, line
        place = (ROOT / "src" / "noising" if match[1] else ROOT) / match[2]
        assert place.exists(), line
        for inner in re.findall(r"\w+/", line[len(match[0]) :]):
            assert any((above / inner).exists() for above in (place, place.parent)), f"{inner} in {line}"


def test_tree_of_contributing_is_whole() -> None:
    (tree,) = (block for block in blocks("CONTRIBUTING.md", "") if "src/noising/" in block)
    rooms = {path.name for path in (ROOT / "src" / "noising").iterdir() if not path.name.startswith("__")}
    assert set(re.findall(r"^  (\w+(?:\.py)?)/? ", tree, re.MULTILINE)) == rooms - {"py.typed"}


def test_every_page_is_linked() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/README.md", "docs/reference.md"}
    assert pages == set(re.findall(r"\((docs/\w+\.md)\)", TEXT))


def test_commands_are_there() -> None:
    assert len(commands("README.md")) >= 18


def test_ci_runs_the_checks_and_the_test_command_of_this_page() -> None:
    (command,) = re.findall(r"^python3 -m venv .*pytest\b", TEXT, re.MULTILINE)
    assert command.endswith('pip install -e ".[test]" && pytest')
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    _, plain = script.split('eval "${command% && pytest}"\n')
    checks = [line for line in plain.splitlines() if not line.startswith(("pip install", "set -x"))]
    tools = ["ruff check .", "ruff format --check .", "mypy", "lint-imports --no-cache", "mkdocs build --strict"]
    assert checks == [*tools, "pytest"]
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
