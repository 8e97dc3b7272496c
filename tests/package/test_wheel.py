"""The installed command, from a wheel, in an empty folder that holds nothing but a user's own schedule."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from noising.runs.folder import Run
from tests.helpers import ROOT, SMALL

MINE = """
import torch
from noising.diffusion.schedules import Schedule

class LinearLogSNR(Schedule):
    def __init__(self, start: float, end: float) -> None:
        super().__init__()
        self.start, self.end = start, end

    def log_snr(self, t):
        # clean at t = 0, and on a straight line from there
        return torch.where(t == 0, torch.inf, self.start + (self.end - self.start) * t)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding the wheel's content, as pip would lay it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(folder / done.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_the_configs(installed: Path) -> None:
    inside = {path.relative_to(installed / "noising" / "conf") for path in installed.rglob("conf/**/*.yaml")}
    assert inside == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert not list(installed.rglob("tests"))


def test_a_users_own_schedule_trains_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "schedule").mkdir(parents=True)
    (tmp_path / "conf" / "schedule" / "mine.yaml").write_text("{_target_: mine.LinearLogSNR, start: 10, end: -10}")
    script = "import sys; sys.path.remove(''); from noising.cli.main import cli; cli()"
    words = [
        "train",
        "--config-dir",
        "conf",
        "schedule=mine",
        *SMALL,
        "trainer.max_steps=10",
        "hydra.run.dir=run",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    assert run.status == "finished"
    assert run.config["schedule"] == {"_target_": "mine.LinearLogSNR", "start": 10, "end": -10}
