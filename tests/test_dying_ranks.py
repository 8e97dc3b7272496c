"""A rank that dies ends the others, whichever it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.test_killed import TRAIN

pytestmark = pytest.mark.slow


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
                if awaited.exists() and len(processes(first.pid)) > 1:
                    break
                time.sleep(0.1)
            (second,) = (pid for pid in processes(first.pid) if pid != first.pid)
            os.kill(first.pid if dies == "first" else second, signal.SIGKILL)
            assert first.wait(60) != 0
            for _ in range(600):
                if not processes(first.pid):
                    break
                time.sleep(0.1)
            assert processes(first.pid) == []
        finally:
            for pid in processes(first.pid):
                os.kill(pid, signal.SIGKILL)


def test_a_drawing_ends_with_a_worker_and_goes_on(trained: Path, tmp_path: Path) -> None:
    script = TRAIN.parent / "scripts" / "sample.py"
    options = [f"checkpoint={trained}", "n=4000", "sampler.steps=50", "batch_size=50", "device=cpu", "devices=2"]
    command = [sys.executable, str(script), *options, "hydra.run.dir=run"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while first.poll() is None and len(list((tmp_path / "run").rglob("0*.npz"))) < 2:
        time.sleep(0.1)
    workers = [pid for pid in processes(first.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "Traceback" not in said
    assert "error: a process that drew images was ended from outside" in said
    assert processes(first.pid) == []
    assert subprocess.run([*command, "resume=true"], cwd=tmp_path, check=False).returncode == 0
