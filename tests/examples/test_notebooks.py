"""The notebooks: they run from top to bottom in few steps, and what is committed is what a run of them leaves."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.helpers import ROOT

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LARGEST = 1_500_000  # bytes


def read(name: str) -> NotebookNode:
    """A notebook by its name."""
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def execute(name: str, folder: Path, **parameters: object) -> str:
    """Run a notebook in a folder, with other values in the cell of its parameters; what its cells have printed."""
    notebook = read(name)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    names = set(re.findall(r"^(\w+) = ", cell.source, re.MULTILINE))
    assert set(parameters) <= names
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_toy_2d(tmp_path: Path) -> None:
    """The forward steps, DDIM's step and the exact bound are asserted by the notebook itself, whatever is trained."""
    printed = execute("toy_2d", tmp_path, STEPS=100, POINTS=100, PIXELS=12, BOUND_POINTS=200)
    assert "1000 steps and one jump agree." in printed
    (excess,) = re.findall(r"exact denoiser, flow +(\S+) ±", printed)
    assert abs(float(excess)) < 0.01
    (excess,) = re.findall(r"network, bound.* (\S+) ±", printed)
    assert float(excess) > 1  # hardly trained


@pytest.mark.slow
def test_mnist(tmp_path: Path) -> None:
    """The notebook on digits, which need no download; it asserts itself that the bound is the sum of its terms."""
    printed = execute("mnist", tmp_path, DATA="digits", STEPS=40)
    assert "UNet of" in printed
    assert "[INFO]" not in printed
    assert len(list((tmp_path / "runs").glob("*/*/summary.json"))) == 1
    assert len(list((tmp_path / "evaluations").glob("*/*/summary.json"))) == 4


def test_both_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["mnist", "toy_2d"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run(path: Path) -> None:
    """In order and without an error, with its pictures; nothing of it tells the machine."""
    cells = [cell for cell in read(path.stem).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 5
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert re.findall(r"(?<![\w.)\]])/(?:home|work|tmp|root|usr|Users)\b\S*", text) == []
    assert "ipykernel_" not in text
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", [*EXAMPLES.rglob("*.md"), *NOTEBOOKS], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([\w./-]+)(?:#[^)]*)?\)", text) if not link.startswith("http")]
    assert [link for link in links if not (path.parent / link).exists()] == []
