"""The throughput counts training alone: by a clock that moves only when it is moved, and in a training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from noising.runs.folder import Run
from noising.training import module
from noising.training.callbacks.samples import SampleGrid
from noising.training.module import DiffusionModule
from noising.training.throughput import Throughput
from noising.training.validation import BoundEvaluation
from tests.helpers import SMALL, Command, read_table


class Clock:
    """A clock that moves only when it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(throughput: Throughput, clock: Clock, count: int) -> None:
    """Count steps of 6 images, each of which takes 0.5 s."""
    for _ in range(count):
        clock.now += 0.5
        throughput.count(6)


def fail_in_pause(throughput: Throughput, clock: Clock) -> None:
    with throughput.paused():
        clock.now += 1000
        raise RuntimeError


def test_the_first_step_only_starts_the_clock() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    clock.now += 100
    assert math.isnan(throughput.images_per_second)
    throughput.count(6)
    assert math.isnan(throughput.images_per_second)
    steps(throughput, clock, 3)
    assert throughput.images_per_second == 12
    clock.now += 0.5  # up to now, within a step
    assert throughput.images_per_second == 18 / 2


def test_pauses_do_not_count_whatever_is_in_them() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    with throughput.paused():  # before the clock has been started, it stays as it is
        clock.now += 100
    throughput.count(6)
    steps(throughput, clock, 2)
    with throughput.paused():
        clock.now += 1000
        with throughput.paused():
            clock.now += 1000
        clock.now += 1000
        assert throughput.images_per_second == 12
    steps(throughput, clock, 2)
    with pytest.raises(RuntimeError):
        fail_in_pause(throughput, clock)
    steps(throughput, clock, 2)
    assert throughput.images_per_second == 12
    throughput.stop()
    clock.now += 1000
    throughput.stop()
    with throughput.paused():
        clock.now += 1000
    assert throughput.images_per_second == 12


def test_the_device_is_waited_for_only_where_the_clock_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that it has yet to do, 3 s of them here, belong to the training."""
    clock, waits = Clock(), []

    def wait() -> None:
        waits.append(clock.now)
        clock.now += 3

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    throughput = Throughput(clock)
    throughput.count(6)
    steps(throughput, clock, 6)
    assert throughput.images_per_second == 12
    assert waits == []
    with throughput.paused():
        pass
    throughput.stop()
    throughput.stop()
    assert waits == [3, 6]
    assert throughput.images_per_second == 36 / 9


def test_a_training_writes_the_throughput_of_its_steps(
    noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches of 0.5 s a step; validation and grids of samples take far longer."""
    clock = Clock()
    monkeypatch.setattr(module, "Throughput", lambda: Throughput(clock))

    def taking(seconds: float, owner: type, name: str) -> None:
        work = getattr(owner, name)

        def slow(*args: Any) -> Any:
            clock.now += seconds
            return work(*args)

        monkeypatch.setattr(owner, name, slow)

    taking(0.5, DiffusionModule, "training_step")
    taking(1000, BoundEvaluation, "update")
    taking(1000, SampleGrid, "_draw")
    options = ("trainer.accumulate_grad_batches=2", "data.batch_size=32", "hydra.run.dir=run")
    outcome = noising("train", *SMALL, *options)
    assert outcome.code == 0, outcome.err
    run = Run(tmp_path / "run")
    rows = {row["step"]: row["train/images_per_second"] for row in read_table(run.metrics)}
    assert {step: float(rate) for step, rate in rows.items()} == dict.fromkeys(("5", "10", "15", "20"), 32.0)
    assert run.summary["train/images_per_second"] == 32
