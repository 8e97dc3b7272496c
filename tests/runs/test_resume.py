"""Which run `resume` goes on with, from where, and with which options."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from noising.runs.folder import Run
from noising.runs.resume import changed_options, find_resumable, find_sweep
from noising.training.checkpoints import AtomicCheckpointIO, load_checkpoint
from tests.helpers import SMALL, Command, read_table, run_command


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ten_steps")
    options = ["trainer.max_steps=10", "+lr_schedule.max_steps=20", "hydra.run.dir=half"]
    assert run_command("train", folder, *SMALL, *options).code == 0
    return folder / "half"


@pytest.fixture
def half(ten_steps: Path, tmp_path: Path) -> Run:
    """A run of ten steps that is to have twenty."""
    return Run(shutil.copytree(ten_steps, tmp_path / "half"))


def test_a_run_goes_on_with_what_is_given_beside_it(half: Run, noising: Command) -> None:
    """A finished one too, if it is given more steps; the optimizer's options are the new ones, its averages the old."""
    outcome = noising("train", "resume=half", "trainer.max_steps=20", "optimizer.lr=0.001", "optimizer.betas=[0.5,0.9]")
    assert outcome.code == 0, outcome.err
    log = (half.path / "train.log").read_text()
    assert "goes on from step 10" in log
    said = "goes on with other options: optimizer.lr=0.001, not 0.008; optimizer.betas=[0.5, 0.9], not [0.9, 0.99]"
    assert said in log
    (state,) = load_checkpoint(half.last_checkpoint)["optimizer_states"]
    assert state["param_groups"][0]["initial_lr"] == 0.001
    assert state["param_groups"][0]["betas"] == (0.5, 0.9)
    rates = {int(row["step"]): float(row["train/lr"]) for row in read_table(half.metrics) if row["train/lr"]}
    per_step = 0.001 / 101  # of the warm-up, which goes on
    assert rates[15] - rates[10] / 8 == pytest.approx(5 * per_step)
    assert rates[20] - rates[15] == pytest.approx(5 * per_step)
    assert half.config["model"]["width"] == 8


@pytest.mark.parametrize("options", [["trainer.max_steps=9"], ["optimizer.lr=0.001"]])
def test_what_is_done_is_not_done_under_other_options(options: list[str], half: Run, noising: Command) -> None:
    before = half.config_file.read_bytes()
    outcome = noising("train", "resume=half", *options)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: trainer.max_steps={9 if 'trainer.max_steps=9' in options else 10}: ")
    assert "has already taken 10 steps; use a larger number, or print its results with resume=" in outcome.err
    assert half.config_file.read_bytes() == before


OTHERS = {
    "model.width=16": "model.width=16, not 8",
    "optimizer=adam": "optimizer._target_=torch.optim.Adam, not torch.optim.AdamW",
    "times=loss_aware": "times._target_=",
    "seed=1": "seed=1, not 0",
}


def test_what_would_be_another_run_is_refused(half: Run, noising: Command) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in half.path.rglob("*") if path.is_file() and path.suffix != ".log"}

    before = files()
    for option, words in OTHERS.items():
        outcome = noising("train", "resume=half", "trainer.max_steps=20", option)
        assert outcome.code == 2
        assert outcome.err.startswith("error: resume: half was started with other options: " + words)
        assert files() == before


def test_a_damaged_checkpoint_is_not_gone_on_from(half: Run, noising: Command) -> None:
    content = half.last_checkpoint.read_bytes()
    half.last_checkpoint.write_bytes(content[: len(content) // 2])
    outcome = noising("train", "resume=half", "trainer.max_steps=20")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: resume: {half.last_checkpoint} is not a checkpoint, or is truncated: ")
    assert outcome.err.endswith("use another one from its folder (best.ckpt); to go on from it, copy it to last.ckpt\n")
    half.best_checkpoint.unlink()
    assert "there is no other checkpoint beside it" in noising("train", "resume=half", "trainer.max_steps=20").err
    older = half.last_checkpoint.with_name("step_000005.ckpt")
    half.last_checkpoint.rename(older)
    gone = noising("train", "resume=half", "trainer.max_steps=20")
    assert gone.err.endswith("is missing; to go on from step_000005.ckpt, copy it to last.ckpt\n")
    older.rename(half.last_checkpoint)
    half.last_checkpoint.unlink()
    assert noising("train", "resume=half", "trainer.max_steps=20").code == 0
    assert "it is written every 5 steps): the run starts from step 0" in (half.path / "train.log").read_text()


def test_a_run_that_goes_on_elsewhere_says_what_differs(half: Run, noising: Command) -> None:
    content = load_checkpoint(half.last_checkpoint)
    assert content["made_with"]["processes"] == 1
    content["made_with"] |= {"processes": 2, "torch": "2.0"}
    AtomicCheckpointIO().save_checkpoint(content, half.last_checkpoint)
    half.finish("interrupted", {})
    assert noising("train", "resume=half").code == 0
    log = (half.path / "train.log").read_text()
    assert "goes on with processes 2 before, 1 now; torch 2.0 before" in log
    assert "not bitwise equal to a run without a stop" in log
    assert half.status == "finished"


def test_a_run_goes_on_with_the_images_it_was_started_with(half: Run, noising: Command) -> None:
    content = load_checkpoint(half.last_checkpoint)
    AtomicCheckpointIO().save_checkpoint({**content, "data_sha256": "other"}, half.last_checkpoint)
    half.finish("interrupted", {})
    refused = noising("train", "resume=half")
    assert refused.code == 2
    assert "data=digits: the images are not those that the run was started with" in refused.err


def make_run(folder: Path, overrides: list[str], status: str | None, age: int) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    file = folder / ".hydra" / "overrides.yaml"
    file.write_text(yaml.safe_dump(overrides))
    os.utime(file, (1_000_000 - age, 1_000_000 - age))
    if status is not None:
        Run(folder).start({})
        Run(folder).finish(status, {})
    return folder


def test_finds_the_newest_unfinished_run_of_the_same_command(tmp_path: Path) -> None:
    make_run(tmp_path / "day" / "finished", ["seed=1", "model=unet"], "finished", age=1)
    make_run(tmp_path / "day" / "other", ["seed=2", "model=unet"], "running", age=2)
    make_run(tmp_path / "too" / "deep" / "to" / "be", ["seed=1", "model=unet"], "running", age=3)
    assert find_resumable(tmp_path, ["seed=1", "model=unet"]) is None
    newest = make_run(tmp_path / "day" / "killed", ["model=unet", "seed=1", "resume=true"], "running", age=4)
    make_run(tmp_path / "x" / "y" / "older", ["seed=1", "model=unet"], "failed", age=5)
    bare = make_run(tmp_path / "bare", ["seed=7"], None, age=6)
    assert find_resumable(tmp_path, ["+resume=true", "seed=1", "hydra.verbose=true", "model=unet"]) == newest
    assert find_resumable(tmp_path, ["seed=7"]) == bare
    assert find_resumable(tmp_path / "nowhere", ["seed=7"]) is None
    unquoted = make_run(tmp_path / "earlier", ["data.root=my images"], "running", age=7)
    assert find_resumable(tmp_path, ['data.root="my images"']) == unquoted


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"status": 3}', '{"cards": [1]}', None])
def test_another_runs_damaged_summary_is_passed_over(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """None: a folder in its place, which cannot be read."""
    killed = make_run(tmp_path / "day" / "killed", ["seed=1"], "running", age=2)
    other = make_run(tmp_path / "day" / "other", ["seed=1"], None, age=1)
    if content is None:
        Run(other).summary_file.mkdir()
    else:
        Run(other).summary_file.write_text(content)
    assert find_resumable(tmp_path, ["seed=1"]) == killed
    (line,) = caplog.messages
    assert line.startswith(f"resume: a run is skipped: {Run(other).summary_file} ")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    for job in (killed, other):
        job.rename(sweep / job.name)
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": ["seed=1,1"]}}}))
    assert find_sweep(tmp_path, ["seed=1,1"], 2) == sweep


def test_finds_a_sweep_until_all_its_jobs_have_finished(tmp_path: Path) -> None:
    sweep, overrides = tmp_path / "day" / "sweep", ["seed=1,2", "model=unet"]
    sweep.mkdir(parents=True)
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": overrides}}}))
    assert find_sweep(tmp_path, ["model=unet", "resume=true", "seed=1,2"], 2) == sweep
    make_run(sweep / "0", ["seed=1", "model=unet"], "finished", age=1)
    assert find_sweep(tmp_path, overrides, 2) == sweep  # the second job has not begun
    second = make_run(sweep / "1", ["seed=2", "model=unet"], "failed", age=1)
    assert find_sweep(tmp_path, overrides, 2) == sweep
    Run(second).finish("finished", {})
    assert find_sweep(tmp_path, overrides, 2) is None
    assert find_sweep(tmp_path, ["seed=1,3", "model=unet"], 2) is None


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_a_damaged_file_is_one_line(name: str, half: Run, noising: Command) -> None:
    (half.path / name).write_text("{")
    outcome = noising("train", "resume=half")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"{name} is damaged: " in outcome.err


FAILING = """
from lightning.pytorch import Callback

class Failing(Callback):
    def __init__(self, at: int):
        self.at = at

    def on_train_batch_start(self, trainer, *batch):
        if trainer.global_step == self.at:
            raise RuntimeError("out of luck")
"""


def test_a_run_that_failed_before_its_first_step_blocks_nothing(
    noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its folder, nor the option that was mended; after a step both are as they were."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_of_test.py").write_text(FAILING)
    failing = "+callbacks.fails={_target_:failing_of_test.Failing,at:%d}"
    options = [*SMALL, "trainer.max_steps=6", "hydra.run.dir=run"]
    for more in ([], ["model.width=16"], ["resume=true"], ["resume=true", "seed=4"]):
        assert noising("train", *options, failing % 0, *more).code == 1
        assert Run(tmp_path / "run").status == "failed"
    assert noising("train", *options, failing % 2, "seed=5").code == 1
    assert Run(tmp_path / "run").config["seed"] == 5
    again = noising("train", *options, "seed=6")
    assert again.err == "error: hydra.run.dir=run already holds a run: choose another folder, or add resume=true\n"
    again = noising("train", *options, "seed=6", "resume=true")
    assert again.code == 2
    assert "run was started with other options: seed=6, not 5" in again.err
    assert noising("train", *options, "seed=5", "resume=true").code == 0


def test_a_copy_without_hidden_files_goes_on(half: Run, noising: Command, tmp_path: Path) -> None:
    """From config.yaml, with its options and choices; what is given beside it wins."""
    options = [
        *SMALL,
        *("schedule=linear", "optimizer=adam", "timesteps=100", "tags=[a b,'c=1']", "label_dropout=null"),
        *("+trainer.gradient_clip_algorithm=norm", "~callbacks.samples.count", "hydra.run.dir=first"),
    ]
    assert noising("train", *options, "trainer.max_steps=10").code == 0
    first = Run(tmp_path / "first")
    shutil.rmtree(first.path / ".hydra")
    before = first.config
    outcome = noising("train", "resume=first", "trainer.max_steps=12")
    assert outcome.code == 0, outcome.err
    differing = changed_options(before, first.config, ())
    assert sorted(one.partition("=")[0] for one in differing) == ["resume", "trainer.max_steps"]
    assert load_checkpoint(first.last_checkpoint)["global_step"] == 12
    again = noising("train", "resume=first", "trainer.max_steps=14")  # it has a record now
    assert again.code == 0, again.err
    shutil.rmtree(first.path / ".hydra")
    stranger = {**first.config, "callbacks": {"x": {"_target_": "subprocess.call", "args": ["touch", "PWNED"]}}}
    first.config_file.write_text(yaml.safe_dump(stranger))
    refused = noising("train", "resume=first")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "names subprocess.call" in refused.err
    assert not (tmp_path / "PWNED").exists()
