"""A disk that is full for everything: the training goes on, what can be written later is, and the end says the rest."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from noising.cli.streams import Output
from noising.commands.sample_jobs import SampleShards
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.runs.status import UnwrittenError, run_status
from noising.training.checkpoints import load_checkpoint
from tests.helpers import AS_TRAINED, TRAIN, Command, Outcome, read_table
from tests.reliability.helpers import rows

_, _HARD = resource.getrlimit(resource.RLIMIT_FSIZE)


def fill() -> None:
    """From here on the system takes no byte for any file of this process, and every write raises OSError."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, _HARD))


def make_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_HARD, _HARD))


@contextmanager
def full() -> Iterator[None]:
    fill()
    try:
        yield
    finally:
        make_room()


class Full(Callback):
    """The disk is full after the first step, and no longer after the last; -1: from the test on, 100: to the end."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.first:
            fill()
        if trainer.global_step == self.last:
            make_room()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.first < 0:
            fill()


OPTIONS = [*AS_TRAINED, "hydra.run.dir=run"]


def filling(first: int, last: int) -> str:
    return f"+callbacks.full={{_target_:tests.reliability.test_full_disk.Full,first:{first},last:{last}}}"


@pytest.fixture(name="noising")
def with_room_afterwards(noising: Command) -> Command:
    """The command; pytest itself may write into a file when a test has ended, and needs room then."""

    def run(name: str, *overrides: str) -> Outcome:
        try:
            return noising(name, *overrides)
        finally:
            make_room()

    return run


def test_a_disk_full_for_a_while(trained: Path, noising: Command, tmp_path: Path) -> None:
    """From step 7 to 12, in which a checkpoint, losses, a validation and a picture are due."""
    outcome = noising("train", *OPTIONS, filling(7, 12))
    run, whole = Run(tmp_path / "run"), Run(trained)
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last == "error: run is finished, but these files are incomplete: samples/step_000010.png (File too large)"
    assert rows(run) == rows(whole)
    assert run.status == "finished"
    assert run.summary["test/bound"] == whole.summary["test/bound"]
    assert load_checkpoint(run.last_checkpoint)["global_step"] == 20
    assert [file.name for file in run.samples.iterdir()] == ["step_000020.png"]
    assert run.samples_image.read_bytes() == whole.samples_image.read_bytes()
    said = (run.path / "train.log").read_text()
    assert "metrics.jsonl cannot be written (File too large); the work goes on" in said
    assert "last.ckpt cannot be written (File too large); training goes on" in said


def test_a_disk_full_from_the_test_on(trained: Path, noising: Command, tmp_path: Path) -> None:
    outcome = noising("train", *OPTIONS, filling(-1, 100))
    run, whole = Run(tmp_path / "run"), Run(trained)
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("error: run is finished, but these files are incomplete: ")
    assert {"summary.json", "samples.png", "reverse_process.gif"} <= {*last.replace(",", "").split()}
    assert f"{whole.summary['test/bound']:.4f}" in outcome.out  # the numbers are not lost
    assert run.status == "running"
    again = noising("train", *OPTIONS, "resume=true")
    assert again.code == 0, again.err
    assert run.summary["test/bound"] == whole.summary["test/bound"]
    assert rows(run) == rows(whole)


def test_a_disk_full_to_the_end_of_the_training(trained: Path, noising: Command, tmp_path: Path) -> None:
    """The trained weights cannot be written: the end says so, and the run goes on from where it could be."""
    outcome = noising("train", *OPTIONS, filling(7, 100))
    run = Run(tmp_path / "run")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "last.ckpt cannot be written (File too large): make room and go on with resume=run" in outcome.err
    assert load_checkpoint(run.last_checkpoint)["global_step"] == 5
    with full():
        refused = noising("train", *OPTIONS, "resume=true")
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert "File too large" in refused.err
    assert noising("train", *OPTIONS, "resume=true").code == 0
    assert rows(run) == rows(Run(trained))


def test_samples_that_find_no_room_are_one_line(trained: Path, noising: Command, tmp_path: Path) -> None:
    options = [f"checkpoint={trained}", "n=4", "batch_size=2", "sampler.steps=2", "device=cpu", "hydra.run.dir=drawn"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleShards, "fill", lambda shards: (fill(), drawn(shards))[1])
        outcome = noising("sample", *options)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    last = "error: a file of drawn cannot be written (File too large): make room, and run it again"
    assert outcome.err.strip().splitlines()[-1] == last
    assert noising("sample", *options, "resume=true").code == 0
    assert (tmp_path / "drawn" / "samples.npz").exists()


drawn = SampleShards.fill


def test_rows_and_the_summary_are_held_until_there_is_room(tmp_path: Path) -> None:
    run = Run(tmp_path)
    results = Results(run)
    run.start({})
    results.write("train/loss", 1.0, 1)
    with full():
        results.write("train/loss", 2.0, 2)
        results.write("test/bound", 3.0, 2, {"images": 7})
        results.sync()
        assert results.rows() == [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 2.0, "test/bound": 3.0}]
        assert run.summary["test/bound"] == 3.0
        assert json.loads(run.summary_file.read_text()) == {"status": "running"}
        assert {*run.unwritten} == {run.metrics_record, run.summary_file}
    results.write("train/loss", 4.0, 3)
    assert {*run.unwritten} == {run.summary_file}
    assert [json.loads(line)["step"] for line in run.metrics_record.read_text().splitlines()] == [1, 2, 2, 3]
    results.finish("finished")
    assert run.unwritten == {}
    assert Run(tmp_path).summary == {
        "status": "finished",
        "cards": {"test/bound": {"images": 7}},
        "test/bound": 3.0,
        "train/loss": 4.0,
    }
    assert [row["train/loss"] for row in read_table(run.metrics)] == ["1.0", "2.0", "4.0"]


def test_the_end_of_a_run_never_hides_the_first_error(tmp_path: Path) -> None:
    class Failing:
        def log_metrics(self, numbers: dict[str, float], step: int) -> None: ...

        def finalize(self, status: str) -> None:
            raise RuntimeError("the service is gone")

    def run(*loggers: Any, error: Exception | None = None) -> None:
        try:
            with redirect_stderr(io.StringIO()), run_status(Results(Run(tmp_path), loggers), {}):
                fill()
                if error is not None:
                    raise error
        finally:
            make_room()

    for loggers in ([], [Failing()]):
        with pytest.raises(KeyError, match="the first"):
            run(*loggers, error=KeyError("the first"))
    with pytest.raises(UnwrittenError, match=r"but these files are incomplete: summary\.json \(File too large\)$"):
        run()


def test_a_full_standard_output_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for stream in ("standard output", "standard error"):
        with open("/dev/full", "w") as nowhere:
            output = Output(nowhere, stream)
            for _ in range(3):
                assert output.write("a line\n") == 7
                output.flush()
            output.close_quietly()
    line = "{} cannot be written (No space left on device); the work goes on\n"
    assert capfd.readouterr().err == line.format("standard output") + line.format("standard error")


@pytest.mark.slow
@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2)])
def test_a_run_whose_output_goes_to_a_full_disk(streams: tuple[int, ...], tmp_path: Path) -> None:
    command = [sys.executable, str(TRAIN), *OPTIONS]
    with open("/dev/full", "w") as nowhere:
        out, err = (nowhere if number in streams else subprocess.PIPE for number in (1, 2))
        done = subprocess.run(command, cwd=tmp_path, stdout=out, stderr=err, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").status == "finished"
    if done.stderr is not None:
        assert "standard output cannot be written (No space left on device); the work goes on" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_real_disk_of_eight_megabytes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        ballast = "while :; do [ -e run/checkpoints/last.ckpt ] && cat /dev/zero > ballast; sleep 0.2; done"
        filler = subprocess.Popen(["sh", "-c", ballast], cwd=disk, stderr=subprocess.DEVNULL, start_new_session=True)
        command = [sys.executable, str(TRAIN), *OPTIONS, "trainer.max_steps=200"]
        done = subprocess.run(command, cwd=disk, capture_output=True, text=True, check=False)
        os.killpg(filler.pid, signal.SIGKILL)
        filler.wait()
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        assert "No space left on device" in done.stderr.strip().splitlines()[-1]
        (disk / "ballast").unlink()
        done = subprocess.run([*command, "resume=true"], cwd=disk, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert Run(disk / "run").status == "finished"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
