"""docs/rows.py: it finds every table that it fills, and its jobs make every picture of the pages."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tests.helpers import ROOT


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rows", ROOT / "docs" / "rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = _loaded()
JOBS = ROWS.jobs_of("FOLDER")
SHOWN = [
    pytest.param(picture, caption, id=f"{page.name}: {picture}")
    for page in ROWS.PAGES
    for picture, caption in re.findall(r"!\[[^\]]*\]\([^)]*images/(\w+)\.png\)\n\n\*(.+?)\*\n", page.read_text(), re.S)
]


def summary() -> dict[str, Any]:
    """Numbers that no page shows."""
    names = [f"{split}/{name}" for split in ("test", "train") for name in ("bound", "fd", "recall", "class_accuracy")]
    names += [f"test/{name}" for name in ("precision", "density", "coverage", "memorized")]
    ends = ("", "_mc_se", "_image_se", "_baseline", "_low", "_high", "_population_low", "_population_high")
    return {f"{name}{end}": 77.7777 for name in names for end in ends} | {"train/images_per_second": 7777.7}


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A folder of finished jobs."""
    folder = tmp_path / "rows"
    for name in JOBS:
        (folder / name).mkdir(parents=True)
        (folder / f"{name}.done").touch()
        (folder / name / "summary.json").write_text(json.dumps(summary()))
    for kind in ROWS.KINDS.values():
        for steps in ROWS.STEPS:
            _write_job(folder / "matrix" / f"{kind}{steps}", sampler={"_target_": f"samplers.{kind}", "steps": steps})
    spaces = [(one, other, seed) for one in ROWS.SPACES for other in ROWS.SPACES for seed in range(3)]
    lines = ["parameterization,parameterization@objective.compared,seed,test/bound"]
    lines += [f"{one},{other},{seed},{77.7777 + number}" for number, (one, other, seed) in enumerate(spaces)]
    (folder / "nine" / "sweep.csv").write_text("\n".join(lines) + "\n")
    for scale in ROWS.SCALES:
        _write_job(folder / "guidance" / scale, guidance={"scale": float(scale)})
    return folder


def _write_job(place: Path, **card: Any) -> None:
    place.mkdir()
    (place / "summary.json").write_text(json.dumps({**summary(), "cards": {"test/fd": card}}))


def copied(folder: Path) -> list[Path]:
    return [Path(shutil.copy(page, folder / f"{number}.md")) for number, page in enumerate(ROWS.PAGES)]


@pytest.mark.parametrize(
    ("fill", "cells"),
    [
        ("recipes", 20),
        ("small", 54),
        ("losses", 16),
        ("nine", 43),
        ("bound", 10),
        ("samplers", 20),
        ("guidance", 24),
        ("quality", 12),
    ],
)
def test_every_cell_is_found(
    fill: str, cells: int, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ROWS, "parameters", lambda rows, name: 77_777)
    pages = copied(tmp_path)
    before = [line for page in pages for line in page.read_text().splitlines()]
    tables = ROWS.Tables(pages)
    getattr(ROWS, f"fill_{fill}")(done, tables)
    tables.write()
    after = [line for page in pages for line in page.read_text().splitlines()]
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert all(a.count("|") == b.count("|") for a, b in changed)
    assert all(line.startswith("|") for pair in changed for line in pair)
    halves = [pair for a, b in changed for pair in zip(a.split("|"), b.split("|"), strict=True)]
    assert sum(a.strip() != b.strip() for a, b in halves) == cells


def test_a_table_or_row_that_is_gone_is_said(tmp_path: Path) -> None:
    tables = ROWS.Tables(copied(tmp_path))
    with pytest.raises(LookupError, match="no page has a table"):
        tables.set("| no such heading |", "a row", 1, "0")
    with pytest.raises(LookupError, match="no row with"):
        tables.set("| recipe | command |", "experiment=nothing", 2, "0")


def test_every_fill_is_called() -> None:
    assert {fill.__name__ for fill in ROWS.FILLS} == {name for name in vars(ROWS) if name.startswith("fill_")}


def test_every_picture_is_shown_and_made() -> None:
    made = {*ROWS.PICTURES, ROWS.SAMPLES_BESIDE_REAL}
    assert {param.values[0] for param in SHOWN} == made
    assert {path.stem for path in ROWS.IMAGES.glob("*")} == made
    everywhere = [name for page in ROWS.PAGES for name in re.findall(r"images/(\w+)\.png", page.read_text())]
    assert len(everywhere) == len(SHOWN)  # each has its caption


@pytest.mark.parametrize(("picture", "caption"), SHOWN)
def test_caption_names_the_command_that_makes_it(picture: str, caption: str) -> None:
    job = ROWS.PICTURES.get(picture, "default/").partition("/")[0]
    script, options = JOBS[job]
    wanted = [ROWS.NEEDED.sub("RUN", option).replace("--multirun", "-m") for option in options if option != "threads=1"]
    (command,) = (code for code in re.findall(r"`([^`]+)`", caption) if code.startswith(("noising", "python")))
    words = shlex.split(command)
    name = words[1] if words[0] == "noising" else Path(words[1]).stem
    assert name == Path(script).stem
    assert words[2:] == wanted


def test_samples_beside_real_digits() -> None:
    shown = Image.open(ROWS.IMAGES / f"{ROWS.SAMPLES_BESIDE_REAL}.png")
    samples = shown.crop((0, 0, (shown.width - 40) // 2, shown.height))
    assert ROWS.beside_real(samples).tobytes() == shown.tobytes()
