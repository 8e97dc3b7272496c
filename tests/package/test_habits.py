"""The version, the versions of Python, the pages of the site and the checks are the same wherever they are written."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = ROOT / ".github" / "workflows"
FORMS = [*WORKFLOWS.glob("*.yml"), *(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"), ROOT / "CITATION.cff"]


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_forms_are_yaml(file: Any) -> None:
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_version_is_one() -> None:
    assert read("CITATION.cff")["version"] == PROJECT["version"]
    assert f"\n## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()


def test_authors_and_licence_are_one() -> None:
    citation = read("CITATION.cff")
    assert citation["authors"] == PROJECT["authors"]
    assert citation["license"] == PROJECT["license"]
    assert PROJECT["authors"][0]["name"] in (ROOT / "LICENSE").read_text()


def test_ci_runs_every_python_that_is_declared() -> None:
    tested = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = [re.findall(r":: (3\.\d+)$", classifier) for classifier in PROJECT["classifiers"]]
    assert tested == [version for found in declared for version in found]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_slow_tests_run_weekly() -> None:
    weekly = read(".github/workflows/weekly.yml")
    assert [step["run"] for step in weekly["jobs"]["slow"]["steps"] if "run" in step][-1] == "pytest -m slow"
    (when,) = weekly[True]["schedule"]  # `on` is true in YAML 1.1
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", when["cron"])


def test_commits_are_checked_by_what_ci_runs() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    programs = {hook["entry"].split()[0] for hook in local["hooks"]}
    assert programs == {"ruff", "mypy", "lint-imports"}
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert programs <= {line.split()[0] for line in lines if line}


def test_every_page_is_on_the_site() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"^ +- (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)) == pages
