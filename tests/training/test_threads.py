"""A training takes the cores that are free when it begins, and a resumed one the number that it had."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from noising.training import threads
from noising.training.checkpoints import load_checkpoint
from noising.training.threads import free_cores, use_threads
from tests.helpers import SMALL, Command


def stat(idle: Sequence[int], waiting: int = 0) -> str:
    """A /proc/stat after 10 ticks of each core, of which so many were idle; user time comes first."""
    cores = "".join(
        f"cpu{core} {1000 + 10 - ticks} 0 0 {5000 + ticks} {waiting} 0 0\n" for core, ticks in enumerate(idle)
    )
    return f"cpu  1 2 3 4 5 6 7\n{cores}intr 5\n"


@pytest.fixture
def cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of four cores: before and after the wait."""

    def machine(before: str, after: str, affinity: Sequence[int] = range(4)) -> None:
        file = tmp_path / "stat"
        file.write_text(before)
        monkeypatch.setattr(threads, "_STAT", file)
        monkeypatch.setattr(threads.time, "sleep", lambda seconds: file.write_text(after))
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(affinity))

    return machine


@pytest.mark.parametrize(
    ("idle", "affinity", "free"),
    [
        ((10, 10, 10, 10), range(4), 4),
        ((10, 0, 10, 0), range(4), 2),
        ((9, 10, 9, 10), range(4), 4),  # somebody looked at the clock
        ((0, 0, 0, 0), range(4), 1),
        ((10, 10, 0, 0), (2, 3), 1),
        ((10, 10, 0, 0), (0, 1), 2),
        ((5, 5, 5, 5), range(4), 2),  # a process that moves about
    ],
)
def test_free_cores_are_those_that_others_leave_idle(
    cores: Any, idle: Sequence[int], affinity: Sequence[int], free: int
) -> None:
    cores(stat([0] * 4).replace(" 1010 ", " 1000 "), stat(idle), affinity)
    assert free_cores() == free


def test_a_core_that_waits_for_a_disk_is_free(cores: Any) -> None:
    cores(stat([0] * 4).replace(" 1010 ", " 1000 "), stat([0] * 4, waiting=30))
    assert free_cores() == 3  # 30 of 40 ticks


def test_where_the_system_does_not_tell_all_cores_are_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "_STAT", tmp_path / "none")
    assert free_cores() == os.cpu_count()


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    yield
    torch.set_num_threads(1)


def trainer(devices: int = 1, kind: str = "cpu") -> Any:
    return SimpleNamespace(num_devices=devices, strategy=SimpleNamespace(root_device=torch.device(kind)))


def test_the_number_is_that_asked_for_or_stored_or_free(as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "free_cores", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    torch.set_num_threads(2)
    assert use_threads(trainer(), 3, 2) == torch.get_num_threads() == 3
    assert use_threads(trainer(), None, 2) == torch.get_num_threads() == 2
    assert use_threads(trainer(), None, 4) == 2  # of a larger machine
    assert use_threads(trainer(), None, None) == 2  # OMP_NUM_THREADS has set it
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert use_threads(trainer(kind="cuda"), None, None) == 2
    assert use_threads(trainer(devices=2), None, None) == 2  # Lightning will share the cores out
    assert use_threads(trainer(), None, None) == torch.get_num_threads() == 1
    monkeypatch.setattr(threads, "free_cores", lambda: 8)
    assert use_threads(trainer(), None, None) == 1  # never more than torch would take


def test_several_processes_are_told_by_the_environment(as_before: None) -> None:
    assert use_threads(trainer(devices=2), 2, None) == 2
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_resumed_training_takes_the_number_that_it_had(noising: Command, tmp_path: Path, as_before: None) -> None:
    options = (*SMALL, "callbacks.samples=null", "hydra.run.dir=run")
    first = noising("train", *options, "threads=2", "trainer.max_steps=10")
    assert ", 2 threads" in first.out
    torch.set_num_threads(1)
    second = noising("train", *options, "resume=true")
    assert ", 2 threads" in second.out
    log = tmp_path / "run" / "train.log"
    assert "bitwise" not in log.read_text()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["made_with"]["threads"] == 2
    torch.set_num_threads(1)
    third = noising("train", *options, "resume=true", "threads=1", "trainer.max_steps=30")
    assert ", 1 thread\n" in third.out
    assert "threads 2 before, 1 now" in log.read_text()
