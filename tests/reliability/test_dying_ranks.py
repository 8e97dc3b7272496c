"""A rank that dies ends the others, whichever it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from noising.runs.folder import Run
from tests.helpers import SMALL, TRAIN, write_images

pytestmark = pytest.mark.slow

OWN = """
import os
from noising.data.image_folder import ImageFolder

class Unequal(ImageFolder):
    def load(self):
        splits = super().load()
        splits.train.pixels[0] += int(os.environ.get("LOCAL_RANK", 0))
        return splits
"""


def processes(group: int) -> list[int]:
    """Those of a process group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(entry.name))
    return sorted(found)


def of(group: int, command: str) -> list[int]:
    """Those of them whose command line has that in it."""
    return [pid for pid in processes(group) if command.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


def left(group: int, deadline: float) -> list[int]:
    """Those of them that are there still at the deadline."""
    while (there := processes(group)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return there


@pytest.mark.parametrize("dies", ["first", "second"])
@pytest.mark.parametrize("when", ["starting", "training"])
def test_all_ranks_end_with_one(dies: str, when: str, tmp_path: Path) -> None:
    options = [*SMALL, "trainer.devices=2", "trainer.max_steps=100000", "checkpoint_every_n_steps=5"]
    command = [sys.executable, str(TRAIN), *options, "trainer.val_check_interval=100000", "hydra.run.dir=run"]
    with open(tmp_path / "said", "w") as said:
        first = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True)
        try:
            awaited = tmp_path / "run" / ("config.yaml" if when == "starting" else "checkpoints/last.ckpt")
            for _ in range(600):
                others = [pid for pid in of(first.pid, "train.py") if pid != first.pid]
                if awaited.exists() and others:
                    break
                time.sleep(0.1)
            (second,) = others
            os.kill(first.pid if dies == "first" else second, signal.SIGKILL)
            deadline = time.monotonic() + 60
            assert first.wait(60) != 0
            assert left(first.pid, deadline) == []
        finally:
            for pid in processes(first.pid):
                os.kill(pid, signal.SIGKILL)
    words = (tmp_path / "said").read_text()
    assert "Traceback" not in words
    if dies == "second":  # by us, if we learn of it; or by Lightning, that looks for it every few seconds
        assert "error: another process of the run has ended" in words or "Child process with PID" in words
    assert Run(tmp_path / "run").status in ("running", "failed")


def test_ranks_read_what_the_first_reads(tmp_path: Path) -> None:
    """A folder by its name from here; and what is read is compared."""
    script = "import sys, os; sys.path[0] = os.getcwd(); from noising.cli.main import main; main('train')"
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "start.py").write_text(script)
    write_images(tmp_path / "images", (np.full((8, 8), 6 * number, np.uint8) for number in range(40)))
    data = ["data=image_folder", "data.root=images", "data.resolution=8", "data.channels=1", "data.batch_size=4"]
    command = [sys.executable, "start.py", *SMALL, *data, "trainer.devices=2"]
    assert subprocess.run([*command, "hydra.run.dir=one"], cwd=tmp_path, check=False).returncode == 0
    told = [*command, "data._target_=own.Unequal", "hydra.run.dir=two"]
    ended = subprocess.run(told, cwd=tmp_path, check=False, stderr=subprocess.PIPE, text=True)
    assert ended.returncode != 0
    assert "rank 1: error: data.root=images: this rank has read other images than the first" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_drawing_ends_with_a_worker_and_goes_on(trained: Path, tmp_path: Path) -> None:
    script = TRAIN.parent / "scripts" / "sample.py"
    options = [f"checkpoint={trained}", "n=4000", "sampler.steps=50", "batch_size=50", "device=cpu", "devices=2"]
    command = [sys.executable, str(script), *options, "hydra.run.dir=run"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while first.poll() is None and len(list((tmp_path / "run").rglob("0*.npz"))) < 2:
        time.sleep(0.1)
    os.kill(of(first.pid, "spawn_main")[-1], signal.SIGKILL)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "Traceback" not in said
    assert "error: a process that was sampling has been killed" in said
    assert left(first.pid, time.monotonic() + 10) == []
    assert subprocess.run([*command, "resume=true"], cwd=tmp_path, check=False).returncode == 0
