"""A run that is killed at random moments and gone on with, in real processes, is bitwise the run that never was."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from noising.runs.folder import Run
from noising.training.callbacks.samples import SampleGrid
from noising.training.ema import EMA
from noising.training.module import DiffusionModule
from noising.training.safety.divergence import NonFiniteGuard
from noising.training.validation import BoundEvaluation
from tests.helpers import SMALL, Command, run_command
from tests.reliability.helpers import LEARNING, SAID, forked, require_same, train

# dropout, accumulation, the loss-aware sampler's history, validation, sampling and metrics: all that could remember
OPTIONS = [
    *SMALL[:-1],
    "experiment=iddpm",
    "times=loss_aware",
    "timesteps=50",
    "model.dropout=0.3",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_steps=60",
    "trainer.val_check_interval=20",
    "callbacks.samples.every_n_steps=20",
    "callbacks.quality.every_n_steps=20",
    "metrics.n=70",
    "metrics.repeats=1",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, float]:
    """The run that was never killed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    outcome = run_command("train", folder, *OPTIONS, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return Run(folder / "run"), time.monotonic() - began


def start(folder: Path, *more: str) -> ForkServerProcess:
    return forked(train, folder, [*OPTIONS, *more, "hydra.run.dir=run", "resume=true"])


def stop(process: ForkServerProcess, written: Path, number: int, after: float = 0) -> int | None:
    """Send a signal so many seconds after the run has written a file of it anew; the exit code."""
    before = written.stat().st_mtime_ns if written.exists() else 0
    while process.is_alive() and not (written.exists() and written.stat().st_mtime_ns > before):
        time.sleep(0.02)
    process.join(after)
    assert process.pid is not None
    if process.is_alive():
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # all its processes, as where a machine goes down
        else:
            os.kill(process.pid, number)
    process.join(60)
    return process.exitcode


def finish(folder: Path, *more: str) -> None:
    last = start(folder, *more)
    last.join(600)
    assert last.exitcode == 0, (folder / SAID).read_text()


def kill_until_done(folder: Path, seconds: float, signals: Sequence[int], seed: int, *more: str) -> list[int | None]:
    """Exit codes of a process after another, each but the last sent a signal at a random moment of its work."""
    begun, chance = Run(folder / "run").summary_file, random.Random(seed)
    codes = []
    for number in signals:
        codes.append(stop(start(folder, *more), begun, number, after=chance.uniform(0, 0.5 * seconds)))
    finish(folder, *more)
    return codes


def test_told_to_stop_and_killed_at_random_moments(whole: tuple[Run, float], tmp_path: Path) -> None:
    """Told to stop, it saves and leaves with the signal's code; killed, it goes on from what was saved last."""
    run, seconds = whole
    part = Run(tmp_path / "run")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        assert stop(start(tmp_path), part.last_checkpoint, number) == 128 + number
        assert part.status == "interrupted"
    kill_until_done(tmp_path, seconds, [signal.SIGKILL] * 3, seed=random.randrange(10**6))
    require_same(run, part)


EVERYTHING = [
    "checkpoint_every_n_steps=7",
    "keep_checkpoints=3",
    "skip_nonfinite_steps=true",
    "callbacks.quality.keep_best=true",
    "logger=[csv,tensorboard]",
]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "rounds"), [(1, 10), (2, 7), (4, 4)])
def test_killed_at_random_moments_often(ranks: int, rounds: int, tmp_path: Path) -> None:
    """63 kills, three in each round of a run that is begun and ended."""
    options = [*EVERYTHING, f"trainer.devices={ranks}"]
    folders = [tmp_path / name for name in ("whole", *map(str, range(rounds)))]
    for folder in folders:
        folder.mkdir()
    began = time.monotonic()
    finish(folders[0], *options)
    seconds = time.monotonic() - began
    for seed, folder in enumerate(folders[1:]):
        kill_until_done(folder, seconds, [signal.SIGKILL] * 3, seed, *options)
        require_same(Run(folders[0] / "run"), Run(folder / "run"))


@pytest.mark.slow
def test_of_two_that_go_on_with_one_run_one_does(whole: tuple[Run, float], tmp_path: Path) -> None:
    run, _ = whole
    part = Run(tmp_path / "run")
    stop(start(tmp_path), part.last_checkpoint, signal.SIGKILL)
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        process.join(300)
    assert sorted(str(process.exitcode) for process in both) == ["0", "2"]
    require_same(run, part)


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


@pytest.mark.slow
def test_losses_of_two_processes_go_on_between_two_logs(tmp_path: Path) -> None:
    """Killed where the losses of some steps since the last log are in the checkpoint, and those of others are not."""
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    two = ["trainer.devices=2", "checkpoint_every_n_steps=7", "trainer.log_every_n_steps=5"]
    finish(tmp_path / "whole", *two)
    part = Run(tmp_path / "part" / "run")
    for after in (0.0, 0.3, 0.6):
        stop(start(tmp_path / "part", *two), part.last_checkpoint, signal.SIGKILL, after)
    finish(tmp_path / "part", *two)
    require_same(Run(tmp_path / "whole" / "run"), part)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("learned")
    assert run_command("train", folder, *LEARNING).code == 0
    return Run(folder / "run")


# each reached within the 20 steps, from where the one before it has left the run
PLACES: list[tuple[Any, str, int, type[BaseException]]] = [
    (DiffusionModule, "on_save_checkpoint", 1, KeyboardInterrupt),
    (NonFiniteGuard, "note", 2, KeyboardInterrupt),  # the losses of the step have been learned from
    (EMA, "update", 2, MemoryError),  # the weights are the next step's, their average is not
    (SampleGrid, "_draw", 1, KeyboardInterrupt),
    (DiffusionModule, "on_validation_epoch_start", 1, MemoryError),
    (BoundEvaluation, "update", 1, KeyboardInterrupt),
]


class Interrupted:
    """A function whose call of some number raises, the others not."""

    def __init__(self, work: Callable[..., Any], when: int, stop: type[BaseException]) -> None:
        self.work, self.when, self.stop, self.calls = work, when, stop, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.when:
            raise self.stop
        return self.work(*args, **options)


def test_interrupted_anywhere_it_goes_on_as_if_nothing_had_been(learned: Run, noising: Command, tmp_path: Path) -> None:
    """By Ctrl-C, or an error: what is saved on the way out is a whole step or nothing."""
    for part, name, when, stop in PLACES:
        interrupted = Interrupted(getattr(part, name), when, stop)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(part, name, lambda *args, call=interrupted, **options: call(*args, **options))
            code = noising("train", *LEARNING, "resume=true").code
        assert interrupted.calls >= when, name
        assert code == (130 if stop is KeyboardInterrupt else 1), name
    assert noising("train", *LEARNING, "resume=true").code == 0
    require_same(learned, Run(tmp_path / "run"))
