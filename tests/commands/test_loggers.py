"""Every number of summary.json is in metrics.csv, W&B's offline file and TensorBoard's events, by every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noising.runs.folder import Run
from tests.helpers import (
    SMALL,
    read_table,
    run_command,
    run_script,
    tensorboard_events,
    tensorboard_scalars,
    wandb_history,
    wandb_records,
    wandb_run,
    wandb_summary,
)

EVERYWHERE = "logger=[csv,wandb,tensorboard]"
COMMANDS = {
    "evaluate": ["evaluate", "checkpoint=train", "bound=stratified", "bound.times=4", "trainer.accelerator=cpu"],
    "quality": ["evaluate", "checkpoint=train", "sampler=ddim", "sampler.steps=2", "metrics.n=70", "device=cpu"],
    "likelihood": ["likelihood", "checkpoint=train", "images=4", "solver=runge_kutta4", "solver.steps=2", "device=cpu"],
    "sample": ["sample", "checkpoint=train", "n=4", "sampler.steps=2", "device=cpu"],
    "compare": ["compare", "train", "train", "paired=true", "bound=stratified", "bound.times=4", "device=cpu"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a trained run, logged everywhere."""
    folder = tmp_path_factory.mktemp("work")
    options = [*SMALL[:-1], "metrics.n=70", "metrics.repeats=2", "callbacks.quality.every_n_steps=10", "tags=[first]"]
    outcome = run_command("train", folder, *options, EVERYWHERE, "hydra.run.dir=train")
    assert outcome.code == 0, outcome.err
    return folder


def require_everywhere(run: Run) -> None:
    """The last value of each number, in every reader; TensorBoard's are float32."""
    numbers = {name: value for name, value in run.summary.items() if "/" in name and value is not None}
    assert {type(value) for value in numbers.values()} <= {int, float}
    of_wandb = {name: value for row in wandb_history(run.path) for name, value in row.items()}
    scalars = tensorboard_scalars(run.path)
    of_table: dict[str, str] = {}
    for row in read_table(run.metrics):
        of_table |= {name: cell for name, cell in row.items() if cell}
    for name, value in numbers.items():
        assert float(of_table[name]) == value, name
        assert of_wandb[name] == value, name
        assert scalars[name][-1][1] == pytest.approx(value, rel=1e-6), name
    assert run.summary["cards"].keys() <= numbers.keys()


@pytest.mark.parametrize("command", ["train", *COMMANDS])
def test_every_number_reaches_every_reader(command: str, folder: Path) -> None:
    if command != "train":
        name, *words = COMMANDS[command]
        outcome = run_command(name, folder, *words, EVERYWHERE, f"hydra.run.dir={command}")
        assert outcome.code == 0, outcome.err
    run = Run(folder / command)
    numbers = [name for name in run.summary if "/" in name]
    assert len(numbers) >= {"train": 40, "sample": 1}.get(command, 3)
    require_everywhere(run)
    assert wandb_run(run.path).job_type == ("evaluate" if command == "quality" else command)
    if command != "train":
        scalars = tensorboard_scalars(run.path)
        assert {step for name in numbers for step, _ in scalars.get(name, [])} == {20}  # of the weights


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_so_it_does_from_two_processes(strategy: str, tmp_path: Path) -> None:
    options = [*SMALL[:-1], "metrics.n=70", "metrics.repeats=2", "trainer.devices=2", f"trainer.strategy={strategy}"]
    outcome = run_script("train.py", tmp_path, *options, EVERYWHERE, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    require_everywhere(Run(tmp_path / "run"))


def test_runs_side_by_side_are_a_table(folder: Path) -> None:
    outcome = run_command("compare", folder, "train", "train", EVERYWHERE, "tags=[x]", "hydra.run.dir=side")
    assert outcome.code == 0, outcome.err
    (file,) = (folder / "side").glob("wandb/offline-run-*/files/media/table/comparison*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["number", "train", "train", "best"]
    assert "test/bound" in [row[0] for row in table["data"]]
    assert [*wandb_run(folder / "side").tags] == ["x"]
    assert "logger" not in outcome.out  # where numbers go is no difference of runs


def test_a_misspelt_option_is_blamed_and_not_the_logger(folder: Path) -> None:
    outcome = run_command("train", folder, "logger=wandb", "trainer.max_step=3")
    assert outcome.err == "error: trainer.max_step: no such option; did you mean trainer.max_steps?\n"


def test_a_training_shows_itself_in_wandb(folder: Path) -> None:
    run, history = Run(folder / "train"), wandb_history(folder / "train")
    summary = wandb_summary(run.path)
    assert [*wandb_run(run.path).tags] == ["first"]
    # the course of a number by optimizer step, and its best in the summary
    course = {row["trainer/global_step"]: row["val/bound"] for row in history if "val/bound" in row}
    assert sorted(course) == [10, 20]
    assert summary["val/bound"] == {"min": min(course.values()), "last": course[20]}
    assert summary["test/bound"] == run.summary["test/bound"]
    assert {row["trainer/global_step"] for row in history if "train/images_per_second" in row} >= {5, 10, 15, 20}
    # pictures with captions, chart and cards, each under a key of its own
    captions = [row["samples"]["caption"] for row in history if "samples" in row]
    assert captions == [f"Ancestral, 4 steps, EMA weights of step {step}, one class per row" for step in (10, 20)]
    for key in ("samples_final", "neighbours", "figures/bound_by_step", "figures/learning_curves"):
        assert summary[key]["_type"] == "image-file", key
    assert summary["bound_by_step_bins"]["_type"] == summary["cards"]["_type"] == "table-file"
    (file,) = run.path.glob("wandb/offline-run-*/files/" + summary["bound_by_step_table"]["path"])
    assert json.loads(file.read_text())["columns"] == ["step of the chain", "bits/dim per step", "split"]  # the chart's
    # and TensorBoard has its table of runs: options, and the numbers of the end
    assert "_hparams_/session_start_info" in tensorboard_events(run.path).summary_metadata
    (exit_code,) = (record.exit.exit_code for record in wandb_records(run.path) if record.HasField("exit"))
    assert exit_code == 0
