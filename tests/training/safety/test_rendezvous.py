"""Two processes of one machine train, and nothing of theirs can be reached from another."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from noising.runs.folder import Run
from tests.helpers import SMALL, TRAIN

pytestmark = pytest.mark.slow


def listening(group: int) -> dict[int, set[str]]:
    """Addresses, in hex, on which each process of a group listens."""
    table = {
        columns[9]: columns[1].partition(":")[0]
        for version in ("tcp", "tcp6")
        for columns in map(str.split, Path(f"/proc/net/{version}").read_text().splitlines()[1:])
        if columns[3] == "0A"
    }
    found: dict[int, set[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[2]) != group:
                    continue
                links = [os.readlink(link) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            sockets = (match[1] for match in map(re.compile(r"socket:\[(\d+)\]").fullmatch, links) if match)
            found[int(entry.name)] = {table[inode] for inode in sockets if inode in table}
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


@pytest.mark.parametrize("strategy", ["auto", "ddp_spawn"])
def test_only_loopback_listens(strategy: str, tmp_path: Path) -> None:
    options = [*SMALL, "trainer.devices=2", "trainer.max_steps=100000", "checkpoint_every_n_steps=5"]
    options += ["trainer.val_check_interval=100000", "hydra.run.dir=run", f"trainer.strategy={strategy}"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    with open(tmp_path / "said", "w") as said:
        first = subprocess.Popen(
            [sys.executable, str(TRAIN), *options],
            **{"cwd": tmp_path, "stdout": said, "stderr": said, "start_new_session": True, "env": environment},
        )
        try:
            for _ in range(600):
                if (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
                    break
                time.sleep(0.1)
            found = listening(first.pid)
            (folder,) = (tmp_path / "tmp").glob("noising-*")
            mode = folder.stat().st_mode & 0o777
            os.kill(first.pid, signal.SIGTERM)
            first.wait(60)
        finally:
            if first.poll() is None:
                os.killpg(first.pid, signal.SIGKILL)
    assert sum(map(bool, found.values())) >= 2, (tmp_path / "said").read_text()  # both ranks' own connections
    assert set().union(*found.values()) <= LOOPBACK
    assert mode == 0o700
    assert not folder.exists() or strategy == "ddp_spawn"  # SIGTERM ends the one that waits for spawned ones at once


def test_both_launchers_train_and_test(tmp_path: Path) -> None:
    """The group of a fit and that of a test, in processes that go on and in those that end with each."""
    numbers = []
    for strategy in ("auto", "ddp_spawn"):
        command = [sys.executable, str(TRAIN), *SMALL, "trainer.devices=2", f"trainer.strategy={strategy}"]
        done = subprocess.run([*command, f"hydra.run.dir={strategy}"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        numbers.append(Run(tmp_path / strategy).summary["test/bound"])
    assert numbers[0] == numbers[1]
