"""A command pays for no import that it does not use: Lightning is for those that train and evaluate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_LIGHTNING = """
import sys
from noising.cli.main import cli
sys.argv = ["noising", *{words!r}]
try:
    cli()
except SystemExit as end:
    assert not end.code, end.code
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in {without!r})
assert not loaded, loaded[:5]
"""


def run_without_lightning(folder: Path, *words: str, without: tuple[str, ...] = ("lightning",)) -> None:
    code = WITHOUT_LIGHTNING.format(words=words, without=without)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def write_run(folder: Path, schedule: str, bound: float) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"schedule: {{_target_: noising.diffusion.schedules.{schedule}}}\n")
    card = {"images": 360, "estimator": "stratified"}
    summary = {"status": "finished", "test/bound": bound, "test/bound_mc_se": 0.01, "cards": {"test/bound": card}}
    summary["declared"] = {"bound": {"title": "bound", "better": "lower"}}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize("flags", [("--help",), ("--cfg", "job"), ("--info", "defaults")])
def test_what_only_shows(flags: tuple[str, ...], tmp_path: Path) -> None:
    run_without_lightning(tmp_path, "train", *flags, without=("lightning", "torch"))


def test_compare(tmp_path: Path) -> None:
    write_run(tmp_path / "one", "Cosine", 2.5)
    write_run(tmp_path / "other", "LinearBeta", 2.9)
    run_without_lightning(tmp_path, "compare", "one", "other", "hydra.run.dir=table")
    assert (tmp_path / "table" / "comparison.csv").exists()


def test_verify(tmp_path: Path) -> None:
    run_without_lightning(tmp_path, "verify", "timesteps=50", "hydra.run.dir=identities")


def test_weightings(tmp_path: Path) -> None:
    run_without_lightning(tmp_path, "weightings", "hydra.run.dir=drawn")


def test_tables() -> None:
    code = "import sys, noising.commands.tables; assert not {'torch', 'lightning'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
