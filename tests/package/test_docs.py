"""docs/: its Python is run, its commands are composed beside the page's own file, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noising.cli.main import with_names
from noising.cli.overrides import composer, each_choice_once
from noising.config.choices import conf_dir
from tests.helpers import ROOT, SMALL, run_command

PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
COMMANDS = [(page, line) for page, text in PAGES.items() for line in re.findall(r"^noising .+$", text, re.MULTILINE)]


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder with the page's mine.py, whose modules are forgotten afterwards."""
    place = tmp_path_factory.mktemp("docs")
    (place / "mine.py").write_text(blocks("extending.md")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        sys.modules.pop("mine", None)
        yield place
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_commands_compose(page: str, command: str, folder: Path) -> None:
    _, name, *words = shlex.split(command)
    options = with_names(name, [word for word in words if word != "-m"])
    with composer(name, str(conf_dir())) as composing:
        options = composing.with_parts_anew(options)
        for job in each_choice_once(composing.parse(options)) if "-m" in words else [options]:
            composing.check(composing.compose(job), job)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_commands_run(page: str, command: str, folder: Path) -> None:
    _, name, *words = shlex.split(command)
    small = [option for option in SMALL if option.partition("=")[0] not in " ".join(words)]
    own_network = any(word.startswith(("model.", "+model", "~model")) for word in words)
    small = [option for option in small if not (own_network and option.startswith("model."))]
    small = [option for option in small if option != "~metrics" or "metrics" not in command]
    done = run_command(name, folder, *words, *(small if name == "train" else []))
    assert done.code == 0, done.err


def test_a_run_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python.md")[0]
    *_, sample, bound, results = code.strip().splitlines()
    quick = ", ".join(f'"{option}"' for option in SMALL if not option.startswith("bound"))
    code = code.replace('"trainer.max_steps=500"', f'{quick}, "bound.stderr=0.2"').replace("stderr=0.05", "stderr=0.2")
    assert quick in code
    names: dict[str, Any] = {}
    exec(code, names)
    run = names["run"]
    assert eval(sample.split("#")[0], names).shape == (16, 8, 8, 1)
    assert eval(bound.split("#")[0].replace("0.05", "0.2"), names).numbers()["bound"] == pytest.approx(
        run.summary["test/bound"], rel=1e-6
    )
    figure, table, number = eval(results, names)
    assert np.asarray(figure).shape[2] == 4
    assert table["test/bound"].dropna().tolist() == [number]


@pytest.mark.parametrize(
    ("steps", "batch", "loss", "bits"), [(60, 32, 0.5, 4.0), pytest.param(300, 128, 0.25, 3.0, marks=pytest.mark.slow)]
)
def test_a_loop_of_ones_own_needs_no_lightning(
    steps: int, batch: int, loss: float, bits: float, tmp_path: Path
) -> None:
    code = blocks("python.md")[1]
    assert len([line for line in code.split("for step")[1].split("drawn")[0].splitlines() if line.strip()]) <= 8
    code = code.replace("range(300)", f"range({steps})").replace("(128,)", f"({batch},)")
    if steps < 300:
        code = code.replace("schedule, 100)", "schedule, 20)").replace("images[:64]", "images[:8]")
    code = f"""{code}
import sys
assert not {{"lightning", "hydra", "omegaconf"}} & set(sys.modules)
assert drawn.shape == (16, 1, 8, 8)
assert loss < {loss}, loss
assert bound.bits_per_dim.total.mean() < {bits}, bound
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"loss 0\.\d{3}, bound \d\.\d{2} bits/dim\n", done.stdout)
