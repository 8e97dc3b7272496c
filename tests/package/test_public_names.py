"""`import noising as nz`: every public part by its name, imported when it is used (typed.py has what mypy sees)."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import noising as nz
from tests.helpers import ROOT

STUB = ROOT / "src" / "noising" / "__init__.pyi"
IMPORTS = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
NAMES = {alias.name: node.module for node in IMPORTS for alias in node.names}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_module_defines(name: str) -> None:
    found = getattr(nz, name)
    if inspect.ismodule(found):
        assert found.__name__ == f"noising.{NAMES[name]}.{name}"
    else:
        assert (found.__module__, found.__qualname__) == (f"noising.{NAMES[name]}", name)


def test_every_part_of_the_theory_is_public() -> None:
    """Final classes of the groups of conf/: a schedule that has a YAML has a name here."""
    missing = set()
    for file in sorted((ROOT / "conf").glob("*/*.yaml")):
        for line in file.read_text().splitlines():
            if line.startswith("_target_: noising.diffusion.") and (name := line.rpartition(".")[2])[0].isupper():
                missing |= {name} - NAMES.keys()
    # which share a name with others: nz.times.Uniform
    assert missing == {"Grid", "Uniform", "Exact", "Gaussian", "Rademacher"} - NAMES.keys()


def test_what_is_no_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Cosin"):
        nz.Cosin  # type: ignore[attr-defined]  # noqa: B018
    assert {"Cosine", "train", "load"} <= set(dir(nz))


def test_a_name_brings_no_more_than_it_needs() -> None:
    code = "import sys, noising as nz; nz.Cosine; assert 'torch' in sys.modules; assert not {'lightning', 'hydra', \
'matplotlib', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_m_noising_is_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "noising"]
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "train a diffusion model" in shown.stdout
    wrong = subprocess.run([*command, "tran"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (2, "error: tran: no such command; did you mean train?\n")
