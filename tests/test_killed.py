"""A run that is killed at random moments and gone on with, in real processes, is bitwise the run that never was."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from noising.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from noising.training.run import Run
from tests.conftest import SMALL, Outcome, run_command

Command = Callable[..., Outcome]

TRAIN = Path(__file__).resolve().parents[1] / "train.py"

# dropout, accumulation, the loss-aware sampler's history, validation, sampling and metrics: all that could remember
OPTIONS = [
    *SMALL[:-1],
    "experiment=iddpm",
    "times=loss_aware",
    "timesteps=50",
    "model.dropout=0.3",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_steps=60",
    "callbacks.quality.every_n_steps=20",
    "metrics.n=70",
    "metrics.repeats=1",
]
TIMING = ("seconds", "share", "images_per_second")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, float]:
    """The run that was never killed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    outcome = run_command("train", folder, *OPTIONS, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return Run(folder / "run"), time.monotonic() - began


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TRAIN), *OPTIONS, *more, "hydra.run.dir=run", "resume=true"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def stop(process: subprocess.Popen[str], run: Run, number: int, after: float) -> int:
    """Send a signal so many seconds after the run has begun its work; the exit code."""
    begun = run.summary_file.stat().st_mtime_ns if run.summary_file.exists() else 0
    while process.poll() is None and not (run.summary_file.exists() and run.summary_file.stat().st_mtime_ns > begun):
        time.sleep(0.02)
    time.sleep(after)
    with suppress(ProcessLookupError):  # it has finished before
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # all its processes, as where a machine goes down
        else:
            process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


def same(one: Any, other: Any, place: str = "") -> None:
    """Bitwise, whatever is nested in what."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            same(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{place}[{number}]")
    else:
        assert one == other, place


def require_same(one: Run, other: Run) -> None:
    checkpoints = [load_checkpoint(run.last_checkpoint) for run in (one, other)]
    for name in ("state_dict", "ema", "optimizer_states", "lr_schedulers", "times", "loss_sums", "global_step"):
        same(*(checkpoint[name] for checkpoint in checkpoints), name)
    tables: list[list[dict[str, str]]] = []
    for run in (one, other):
        with open(run.metrics) as file:
            tables.append([{k: v for k, v in row.items() if not k.endswith(TIMING)} for row in csv.DictReader(file)])
    for row, again in zip(*tables, strict=True):
        assert {k: (v, again[k]) for k, v in row.items() if v != again[k]} == {}, row["step"]
    numbers = [{k: v for k, v in run.summary.items() if "/" in k and not k.endswith(TIMING)} for run in (one, other)]
    assert numbers[0] == numbers[1]
    pictures = [[*sorted((run.path / "samples").iterdir()), run.samples_image] for run in (one, other)]
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    for a, b in zip(*pictures, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def finish(folder: Path, *more: str) -> None:
    last = start(folder, *more)
    _, error = last.communicate(timeout=240)
    assert last.returncode == 0, error


def kill_until_done(folder: Path, seconds: float, signals: Sequence[int], seed: int, *more: str) -> list[int]:
    """Exit codes of a process after another, each but the last sent a signal at a random moment of its work."""
    run, chance = Run(folder / "run"), random.Random(seed)
    codes = []
    for number in signals:
        codes.append(stop(start(folder, *more), run, number, after=chance.uniform(0, 0.5 * seconds)))
    finish(folder, *more)
    return codes


def test_killed_at_random_moments(whole: tuple[Run, float], tmp_path: Path) -> None:
    run, seconds = whole
    kill_until_done(tmp_path, seconds, [signal.SIGKILL] * 3, seed=random.randrange(10**6))
    require_same(run, Run(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7))
def test_killed_at_random_moments_often(whole: tuple[Run, float], seed: int, tmp_path: Path) -> None:
    run, seconds = whole
    kill_until_done(tmp_path, seconds, [signal.SIGKILL] * 3, seed)
    require_same(run, Run(tmp_path / "run"))


@pytest.mark.slow
def test_two_processes_killed_and_told_to_stop(tmp_path: Path) -> None:
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    two = ("trainer.devices=2", "trainer.log_every_n_steps=1")  # on which they agree to stop
    began = time.monotonic()
    finish(tmp_path / "whole", *two)
    seconds = time.monotonic() - began
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1]
    codes = kill_until_done(tmp_path / "part", 0.7 * seconds, signals, 0, *two)
    told = [{-signal.SIGKILL}, {143, -signal.SIGTERM}, {-signal.SIGKILL}, {138, -signal.SIGUSR1}]
    assert all(code in {0, *allowed} for code, allowed in zip(codes, told, strict=True)), codes
    require_same(Run(tmp_path / "whole" / "run"), Run(tmp_path / "part" / "run"))


def test_told_to_stop_it_saves_and_leaves_with_the_signals_code(whole: tuple[Run, float], tmp_path: Path) -> None:
    run, seconds = whole
    for number in (signal.SIGTERM, signal.SIGUSR1):
        code = stop(start(tmp_path), Run(tmp_path / "run"), number, after=0.3 * seconds)
        if code == -number:  # on a slow machine it came before the first step, as which the shell reads the same
            continue
        assert code == 128 + number
        assert Run(tmp_path / "run").status == "interrupted"
        assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] > 0
    finish(tmp_path)
    require_same(run, Run(tmp_path / "run"))


def test_a_run_that_goes_on_elsewhere_says_what_differs(noising: Command, tmp_path: Path) -> None:
    part = [*SMALL, "hydra.run.dir=run", "trainer.max_steps=5", "+lr_schedule.max_steps=20"]
    assert noising("train", *part).code == 0
    run = Run(tmp_path / "run")
    content = load_checkpoint(run.last_checkpoint)
    assert content["made_with"]["processes"] == 1
    content["made_with"] |= {"processes": 2, "torch": "2.0"}
    AtomicCheckpointIO().save_checkpoint(content, run.last_checkpoint)
    run.finish("interrupted")
    assert noising("train", *SMALL, "hydra.run.dir=run", "resume=true").code == 0
    log = (run.path / "train.log").read_text()
    assert "goes on with processes 2 before, 1 now; torch 2.0 before" in log
    assert "not bitwise the run without a stop" in log
    assert Run(run.path).status == "finished"
    AtomicCheckpointIO().save_checkpoint({**content, "data_sha256": "other"}, run.last_checkpoint)
    run.finish("interrupted")
    refused = noising("train", *SMALL, "hydra.run.dir=run", "resume=true")
    assert refused.code == 2
    assert "the images of digits are not those that the run was started with" in refused.err
