"""What the commands say of themselves, and that an installed one does what a clone does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from noising.cli.help import GROUPS
from noising.cli.streams import Output
from noising.config.choices import conf_dir
from tests.helpers import ROOT

Run = Callable[..., tuple[int, str, str]]


def test_help_is_short_and_lists_the_groups(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "cosine, linear" in out
    assert GROUPS["schedule"] in out
    assert "_target_" not in out


@pytest.mark.parametrize(
    ("command", "takes", "not_these"),
    [
        ("evaluate", {"bound", "sampler", "guidance", "logger"}, {"schedule", "trainer", "benchmark"}),
        ("train", {"experiment", "logger", "weighting"}, {"guidance", "solver"}),
    ],
)
def test_help_lists_the_groups_that_the_command_takes(command: str, takes: set[str], not_these: set[str]) -> None:
    script = ROOT / ("train.py" if command == "train" else f"scripts/{command}.py")
    out = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  (\w+)  +\S", out, re.MULTILINE))
    assert takes <= listed
    assert not listed & not_these


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--cfg job --package model", "width: 4"),
        ("--cfg job --resolve", "width: 4"),
        ("--hydra-help", "--multirun"),
        ("--info defaults", "schedule/cosine"),
    ],
)
def test_flags_of_hydra_pass_through(run: Run, words: str, shown: str) -> None:
    code, out, _ = run(*words.split())
    assert code == 0
    assert shown in out


def test_whoever_reads_may_stop_reading() -> None:
    """`... | head`: the work goes on, and what it says is lost."""
    reader, writer = os.pipe()
    with open(writer, "w", buffering=1) as closed:
        output = Output(closed, "standard output")
        os.close(reader)
        for _ in range(2):
            print("a line", file=output)
            output.flush()


def test_every_group_has_its_words() -> None:
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir() and any(path.glob("*.yaml"))}
    assert groups - {"hydra"} == set(GROUPS)


def test_installed_command_finds_a_users_class_in_the_current_folder(toy: Path, tmp_path: Path) -> None:
    """As from a wheel: sys.path[0] is not the current folder, where mine.py lies beside
    mine/schedule/mine.yaml.
    """
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "mine.yaml").write_text("{_target_: mine_parts.Mine, strength: 2}")
    (tmp_path / "mine_parts.py").write_text("class Mine:\n    def __init__(self, strength: int): ...\n")
    script = tmp_path / "bin" / "noising"
    script.parent.mkdir()
    script.write_text(
        "from pathlib import Path\nfrom noising.cli import main\nfrom noising.cli.commands import COMMANDS, Command\n"
        f"main.conf_dir = lambda: Path({str(toy / 'conf')!r})\n"
        "COMMANDS['train'] = Command('toy_parts:job', 'toy', 'runs')\nmain.cli()\n"
        "import sys\nassert not {'torch', 'lightning'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(toy)])}

    def noising(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = noising("train", "--config-dir", "mine", "schedule=mine", "hydra.run.dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "finished"
    wrong = noising("train", "--config-dir", "mine", "schedule=mine", "schedule.strength=x")
    assert (wrong.returncode, wrong.stderr) == (2, "error: schedule.strength=x: expected int\n")
    assert noising("trian").stderr == "error: trian: no such command; did you mean train?\n"
