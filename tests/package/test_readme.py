"""README.md speaks of what is there: its links, its tree, its commands, and CI's."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from noising.cli.main import with_names
from noising.cli.overrides import composer, each_choice_once
from noising.config.choices import conf_dir
from tests.helpers import ROOT

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith(("python train.py", "python scripts"))
]


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_code_beside_an_equation_is_in_the_file_it_links_to() -> None:
    found = re.findall(r"\[((?:`[\w.]+`(?:, )?)+)\]\((src/[^)]+)\)", TEXT)
    assert len(found) >= 7
    for names, path in found:
        source = (ROOT / path).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                assert re.search(rf"(def|class) {part}\b", source), f"{part} is not in {path}"


def test_tree_is_the_real_one() -> None:
    tree = TEXT.split("## The tree")[1].split("```")[1]
    for line in tree.splitlines():
        if match := re.match(r"(  )?([\w.]+/?)  ", line):
            folder = ROOT / "src" / "noising" if match[1] else ROOT
            assert (folder / match[2]).exists(), line


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    _, script, *overrides = shlex.split(command)
    assert (ROOT / script).is_file()
    if overrides == ["--help"]:
        return
    sweeps = "-m" in overrides
    options = [option for option in overrides if option != "-m" and not option.startswith("resume")]
    options = with_names(Path(script).stem, options)
    with composer(Path(script).stem, str(conf_dir()), None) as composing:
        for job in each_choice_once(composing.parse(options)) if sweeps else [options]:
            composing.check(composing.compose(job), job)


def test_oracle_of_the_page_knows_the_entropy() -> None:
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "oracle_denoiser" in code)
    names: dict[str, Any] = {}
    exec(block, names)
    (claimed,) = re.findall(r"# ([\d.]+) = data.entropy", block)
    assert names["bits"] == pytest.approx(float(claimed), abs=5e-8)
    assert names["bits"] == pytest.approx(names["data"].entropy / math.log(2), abs=1e-9)


def test_ci_runs_the_test_command_of_this_page() -> None:
    (command,) = re.findall(r"^python3 -m venv .*pytest\b", TEXT, re.MULTILINE)
    assert command.endswith('pip install -e ".[test]" && pytest')
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
