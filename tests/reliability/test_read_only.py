"""A run's folder that is mounted read-only in mid-run: the training goes on, and what can be written later is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from noising.runs.folder import Run
from noising.training.checkpoints import load_checkpoint
from tests.helpers import AS_TRAINED, Command
from tests.reliability.helpers import rows


def mount_read_only(folder: Path) -> bool:
    """Lay the folder over itself, read-only; whether that is allowed here. Files that are open stay writable."""
    commands = (["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,ro,bind", str(folder)])
    return not any(subprocess.run(command, capture_output=True, check=False).returncode for command in commands)


def mount_writable(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


class ReadOnly(Callback):
    """The folder is read-only from one step to another."""

    def __init__(self, folder: str, first: int, last: int) -> None:
        self.folder, self.first, self.last = Path(folder), first, last

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.first:
            assert mount_read_only(self.folder)
        if trainer.global_step == self.last:
            mount_writable(self.folder)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of the run, where a read-only mount is allowed; writable again when the test has ended."""
    probe, run = tmp_path / "probe", tmp_path / "run"
    probe.mkdir()
    allowed = os.geteuid() == 0 and mount_read_only(probe)
    mount_writable(probe)
    if not allowed:
        pytest.skip("cannot mount here")
    yield run
    mount_writable(run)


@pytest.mark.parametrize("last", [12, 100])
def test_a_folder_that_becomes_read_only(folder: Path, last: int, trained: Path, noising: Command) -> None:
    """From step 7 on, for a while or to the end: the line says what is not written, and the rest can be had."""
    read_only = f"{{_target_:tests.reliability.test_read_only.ReadOnly,folder:{folder},first:7,last:{last}}}"
    outcome = noising("train", *AS_TRAINED, "hydra.run.dir=run", f"+callbacks.read_only={read_only}")
    run, whole = Run(folder), Run(trained)
    assert "Traceback" not in outcome.err
    if last == 12:
        assert outcome.code == 1, outcome.err
        line = "error: run is finished, but these files are incomplete: samples/step_000010.png (Read-only file system)"
        assert outcome.err.strip().splitlines()[-1] == line
    else:
        assert outcome.code == 2, outcome.err
        assert "last.ckpt cannot be written (Read-only file system): make room and go on with resume=run" in outcome.err
        assert load_checkpoint(run.last_checkpoint)["global_step"] == 5
        refused = noising("train", *AS_TRAINED, "hydra.run.dir=run", "resume=true")
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
        assert "run: cannot write in this folder" in refused.err
        mount_writable(folder)
        assert noising("train", *AS_TRAINED, "hydra.run.dir=run", "resume=true").code == 0
    assert rows(run) == rows(whole)
    assert run.status == "finished"
    assert run.summary["test/bound"] == whole.summary["test/bound"]
    assert run.samples_image.read_bytes() == whole.samples_image.read_bytes()
