"""README.md and docs/: links lead somewhere, commands compose, short ones run, Python runs, equations have code."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noising as nz
from noising.cli.commands import COMMANDS
from noising.cli.main import with_names
from noising.cli.overrides import composer, each_choice_once, without_null_groups
from noising.config.choices import conf_dir
from tests.helpers import CONF, ROOT, SMALL, run_command
from tests.package.pages import FENCE, PAGES, PageCommand, blocks, command_of, commands

EVERY = {str(command): command for page in PAGES for command in commands(page)}
SHORT = {str(command): command for page in PAGES for command in commands(page) if command.short}
OWN_PARTS = {
    str(command): command
    for block in blocks("docs/extending.md", "bash")
    for line in block.splitlines()
    if (command := command_of(line)) is not None
}
EQUATIONS = re.findall(r"\$\$(.+?)\$\$\n\n(.+?)\n(?:\n|\Z)", PAGES["docs/equations.md"], re.DOTALL)
OPTION = re.compile(r"--[\w-]+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the mine.py of docs/extending.md and names for its parts; its modules are forgotten afterwards."""
    place = tmp_path_factory.mktemp("docs")
    (place / "mine.py").write_text("\n\n".join(blocks("docs/extending.md", "python")))
    for group, part in (("model", "Net"), ("schedule", "Lingering")):
        (place / "conf" / group).mkdir(parents=True)
        (place / "conf" / group / "mine.yaml").write_text(f"_target_: mine.{part}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        sys.modules.pop("mine", None)
        yield place
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def run_folder(folder: Path) -> Path:
    """The folder with two small runs in it, RUN and ANOTHER."""
    done = run_command("train", folder, *SMALL, "hydra.run.dir=RUN")
    assert done.code == 0, done.err
    shutil.copytree(folder / "RUN", folder / "ANOTHER")
    return folder


def slug(heading: str) -> str:
    """The anchor that code hosts and mkdocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = FENCE.sub("", PAGES[page])
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)]
    for link in links:
        file, _, anchor = link.partition("#")
        if not file.startswith("http"):
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), link
            if anchor:
                assert anchor in map(slug, re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)), link
    for label in re.findall(r"\]\[([^\]]+)\]", text):
        assert f"\n[{label}]: " in text, label


@pytest.mark.parametrize("page", PAGES)
def test_code_in_a_link_is_in_the_file_it_leads_to(page: str) -> None:
    for names, link in re.findall(r"\[((?:`[\w.]+`(?:, )?)+)\]\(([^)#]+\.py)\)", PAGES[page]):
        source = ((ROOT / page).parent / link).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                assert re.search(rf"(def|class) {part}\b", source), f"{part} is not in {link}"


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_at_most_120_columns_wide(page: str) -> None:
    lines = FENCE.sub("", PAGES[page]).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("command", EVERY.values(), ids=EVERY)
def test_commands_compose(command: PageCommand, folder: Path) -> None:
    words = list(command.words)
    place = words.pop(words.index("--config-dir") + 1) if "--config-dir" in words else None
    flags = {word for word in words if OPTION.fullmatch(word) or word == "-m"}
    assert flags <= {"-m", "--help", "--config-dir"}
    options = [word for word in words if word not in flags and not word.startswith("resume=")]
    with composer(command.name, str(conf_dir()), place) as composing:
        options = composing.with_parts_anew(without_null_groups(with_names(command.name, options)))
        for job in each_choice_once(composing.parse(options)) if "-m" in flags else [options]:
            composing.check(composing.compose(job), job)


def test_commands_are_found() -> None:
    assert len(EVERY) >= 80
    assert len(SHORT) >= 9
    assert {command.name for command in EVERY.values()} == set(COMMANDS)


@pytest.mark.parametrize("command", SHORT.values(), ids=SHORT)
def test_short_commands_run(command: PageCommand, run_folder: Path) -> None:
    done = run_command(command.name, run_folder, *command.words)
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize("command", OWN_PARTS.values(), ids=OWN_PARTS)
def test_commands_with_parts_of_ones_own_run(command: PageCommand, folder: Path) -> None:
    text = str(command)
    small = [option for option in SMALL if option.partition("=")[0] not in text]
    own_network = any(word.startswith(("model.", "+model", "~model", "model=")) for word in command.words)
    small = [option for option in small if not (own_network and option.startswith("model."))]
    small = [option for option in small if option != "~metrics" or "metrics" not in text]
    done = run_command(command.name, folder, *command.words, *(small if command.name == "train" else []))
    assert done.code == 0, done.err


@pytest.mark.parametrize(("equation", "code"), EQUATIONS, ids=[equation[:40] for equation, _ in EQUATIONS])
def test_an_equation_stands_with_its_function_and_its_test(equation: str, code: str) -> None:
    assert equation.count("{") == equation.count("}")
    assert equation.count(r"\left") == equation.count(r"\right")
    functions, tests = re.fullmatch(r"Function: (.+)\.\nTest: (.+)\.", code, re.DOTALL).groups()  # type: ignore[union-attr]
    assert "](../src/noising/" in functions
    found = re.findall(r"\[(.+?)\]\(\.\./(tests/[\w/]+\.py)\)", tests, re.DOTALL)
    assert found
    for names, file in found:
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in (ROOT / file).read_text(), name


def test_every_equation_is_held() -> None:
    text = PAGES["docs/equations.md"]
    assert len(EQUATIONS) == text.count("$$") / 2 == text.count("\nFunction: ") == text.count("\nTest: ") >= 15


def test_parts_are_all_groups_and_choices() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", PAGES["docs/parts.md"], re.MULTILINE)
    written = {group: sorted(re.findall(r"`(\w+)`", choices)) for group, choices in rows}
    assert written == {
        group.name: sorted(file.stem for file in group.glob("*.yaml")) for group in CONF.iterdir() if group.is_dir()
    }


def test_reference_shows_every_public_name() -> None:
    lists = re.findall(r"members: \[(.+?)\]", PAGES["docs/reference.md"], re.DOTALL)
    assert sorted(re.findall(r"\w+", " ".join(lists))) == sorted(nz.__all__)


def test_command_line_lists_every_command() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGES["docs/command_line.md"], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_oracle_of_the_page_knows_the_entropy() -> None:
    (block,) = blocks("docs/verify.md", "python")
    names: dict[str, Any] = {}
    exec(block, names)
    (claimed,) = re.findall(r"# ([\d.]+) = data.entropy", block)
    assert names["bits"] == pytest.approx(float(claimed), abs=5e-8)
    assert names["bits"] == pytest.approx(names["data"].entropy / math.log(2), abs=1e-9)


def test_a_run_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("docs/python.md", "python")[0]
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
    code = blocks("docs/python.md", "python")[1]
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
