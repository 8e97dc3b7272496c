"""Weights & Biases: what its offline files hold, the names of runs, the environment's say, and never a question."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from noising.runs.declarations import Declaration
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.training.loggers import (
    VARIABLES,
    WandB,
    _artifact_name,
    _stable_id,
    _wandb_mode,
    run_name,
    sweep_group,
    wandb_arguments,
)
from tests.helpers import wandb_config, wandb_history, wandb_records, wandb_run, wandb_summary

SWEEP = "sweeps/2026-01-31/12-00-00"
CONFIG = {"seed": 3, "model": {"width": 8}, "tags": ["first"], "api_key": "sesame"}


def recorded(folder: Path, *overrides: str) -> Run:
    """A run's folder as Hydra leaves it."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides]))
    return Run(folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory of someone without a key, a mode or a variable of W&B; whoever asks a question fails."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC", *VARIABLES.values()):
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("work")
        patch.setenv("HOME", str(folder / "home"))
        patch.setattr(sys, "stdin", None)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def job(bare: Path) -> Path:
    """The folder of a sweep's job that logged one of everything."""
    run = recorded(bare / SWEEP / "1_seed=3", "seed=3", "+resume=sweeps")
    (run.path.parent / "multirun.yaml").touch()
    files = ("last.ckpt", "best.ckpt", "last.ckpt.tmp")
    for path in (*(run.path / "checkpoints" / name for name in files), run.samples_at(40), run.samples_image):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"content of " + path.name.encode())
    results = Results(run, [WandB(run, CONFIG, tags=["try"], notes="a note", artifacts=["checkpoints", "samples"])])
    results.declare({"bound": Declaration("The bound", better="lower"), "is": Declaration("IS", better="higher")})
    for step, bound, score in ((10, 3.0, 1.0), (20, 2.5, 5.0), (30, math.nan, 4.0), (40, 2.75, 2.0)):
        results.write_all({"val/bound": bound, "val/is": score, "val/seconds": step / 10}, step)
    results.write("test/bound", 2.25, 40, {"times": 16, "estimator": {"name": "stratified"}, "seed": None})
    results.write_image("by_step", np.full((8, 6), 7, np.uint8), 40, "The bound by step")
    results.write_chart("by_step", ("t", "bits", "part"), [(1, 0.5, "prior"), (2, 0.25, "prior")], "The bound", 40)
    results.close_loggers()
    return run.path


def table(job: Path, entry: dict[str, Any]) -> dict[str, Any]:
    (folder,) = job.glob("wandb/offline-run-*/files")
    found: dict[str, Any] = json.loads((folder / entry["path"]).read_text())
    return found


def test_the_run_is_named_grouped_and_tagged(job: Path) -> None:
    run = wandb_run(job)
    assert run.display_name == "seed=3 (2026-01-31/12-00-00)"
    assert (run.run_group, run.job_type, run.project, run.entity) == (SWEEP, "train", "noising", "")
    assert ([*run.tags], run.notes, run.resume) == (["first", "try"], "a note", True)
    assert run.run_id == (job / "wandb" / "id.txt").read_text()
    config = wandb_config(job)
    config.pop("_wandb")
    assert config == {**CONFIG, "api_key": "***"}
    assert b"sesame" not in b"".join(file.read_bytes() for file in job.rglob("*") if file.is_file())


def test_history_has_every_finite_number_by_optimizer_step_and_the_summary_the_best(job: Path) -> None:
    rows = [row for row in wandb_history(job) if "val/seconds" in row]
    names = ("trainer/global_step", "val/bound", "val/is", "val/seconds")
    assert [[row.get(name) for name in names] for row in rows] == [
        [10, 3.0, 1.0, 1.0],
        [20, 2.5, 5.0, 2.0],
        [30, None, 4.0, 3.0],
        [40, 2.75, 2.0, 4.0],
    ]
    summary = wandb_summary(job)
    assert (summary["val/bound"], summary["val/is"]) == ({"min": 2.5, "last": 2.75}, {"max": 5.0, "last": 2.0})
    assert summary["val/seconds"] == 4.0
    metrics = {record.metric.name or record.metric.glob_name: record.metric for record in wandb_records(job)}
    assert {metrics[name].step_metric for name in ("*", "val/bound", "val/is")} == {"trainer/global_step"}
    assert summary["test/bound"] == 2.25  # of the end: there is no better one


def test_picture_and_chart_have_keys_of_their_own_and_cards_are_a_table(job: Path) -> None:
    summary = wandb_summary(job)
    picture = summary["by_step"]
    assert (picture["_type"], picture["width"], picture["height"]) == ("image-file", 6, 8)
    assert picture["caption"] == "The bound by step"
    chart = wandb_config(job)["_wandb"]["visualize"]["by_step_chart"]["panel_config"]
    assert chart["panelDefId"] == "wandb/line/v0"
    assert chart["fieldSettings"] == {"x": "t", "y": "bits", "stroke": "part"}
    assert chart["stringSettings"] == {"title": "The bound"}
    points = table(job, summary["by_step_chart_table"])
    assert (points["columns"], points["data"]) == (["t", "bits", "part"], [[1, 0.5, "prior"], [2, 0.25, "prior"]])
    cards = table(job, summary["cards"])
    assert cards["columns"] == ["number", "entry", "value"]
    assert cards["data"] == [
        ["test/bound", "times", 16],
        ["test/bound", "estimator.name", "stratified"],
        ["test/bound", "seed", None],
    ]


def test_checkpoints_and_samples_are_stored_where_chosen(job: Path) -> None:
    records = wandb_records(job)
    artifacts = {
        (record.artifact.type, record.artifact.name): [entry.path for entry in record.artifact.manifest.contents]
        for record in records
        if record.HasField("artifact") and record.artifact.type != "run_table"
    }
    run_id = wandb_run(job).run_id
    assert artifacts == {
        ("model", f"model-{run_id}"): ["checkpoints/best.ckpt", "checkpoints/last.ckpt"],
        ("samples", f"samples-{run_id}"): ["samples.png", "samples/step_000040.png"],
    }
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert _artifact_name("model", "a run/of:mine" + 200 * "x") == ("model-a-run-of-mine" + 200 * "x")[:128]


def test_resumed_run_is_the_same_and_failed_where_it_fails(bare: Path, job: Path) -> None:
    run = recorded(bare / "resumed")
    (run.path / "wandb").mkdir()
    shutil.copy(job / "wandb" / "id.txt", run.path / "wandb")
    logger = WandB(run, CONFIG, artifacts=["checkpoints"])  # of which there are none
    logger.log_metrics({"val/bound": 2.0}, 50)
    logger.close(failed=True)
    records = wandb_records(run.path)
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    assert not any(record.HasField("artifact") for record in records)
    resumed = wandb_run(run.path)
    assert (resumed.run_id, resumed.resume) == (wandb_run(job).run_id, True)
    assert (resumed.run_group, resumed.display_name) == ("", f"train ({bare.name}/resumed)")


def test_run_of_wandb_agent_is_the_agents(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run1", "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team"}
    for name, value in agent.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it remembers the environment
    try:
        run = recorded(bare / "agents", "seed=1")
        logger = WandB(run, CONFIG, command="evaluate", project="mine")
        logger.log_metrics({"val/bound": 2.0}, 50)
        logger.close()
        found = wandb_run(run.path)
        assert (found.sweep_id, found.run_id, found.project, found.entity) == ("sweep1", "run1", "theirs", "team")
        assert (found.job_type, found.display_name) == ("evaluate", f"seed=1 ({bare.name}/agents)")
        assert wandb_history(run.path)[0]["val/bound"] == 2.0
        assert (run.path / "wandb" / "id.txt").read_text() == "run1"
    finally:
        wandb.teardown()


@pytest.mark.parametrize(
    ("argument", "variable", "setting"),
    [
        ("project", "WANDB_PROJECT", "project"),
        ("entity", "WANDB_ENTITY", "entity"),
        ("group", "WANDB_RUN_GROUP", "run_group"),
        ("name", "WANDB_NAME", "run_name"),
        ("notes", "WANDB_NOTES", "run_notes"),
        ("job_type", "WANDB_JOB_TYPE", "run_job_type"),
        ("id", "WANDB_RUN_ID", "run_id"),
    ],
)
def test_what_is_given_wins_over_the_environment_and_that_over_our_own(
    argument: str, variable: str, setting: str
) -> None:
    import wandb

    given, own, theirs = ["given", "own", "theirs"]
    variables = {variable: theirs}
    read = wandb.Settings()
    read.update_from_env_vars(variables)  # as wandb itself reads the environment
    assert getattr(read, setting) == theirs
    for value, environment, expected in [
        (given, variables, given),
        (None, variables, theirs),
        ("", {variable: ""}, own),  # "" is as null
        (None, {}, own),
    ]:
        found = wandb_arguments({argument: value}, {argument: own}, environment)
        assert found.pop(argument) == expected
        assert set(found.values()) == {None}


def test_tags_of_the_environment_come_besides(tmp_path: Path) -> None:
    for given, environment, expected in [
        (["x", "a"], {"WANDB_TAGS": "a,b"}, ["x", "a", "b"]),
        ([], {"WANDB_TAGS": "a,b"}, ["a", "b"]),
        (["x"], {}, ["x"]),
        ([], {"WANDB_TAGS": ""}, None),
    ]:
        assert wandb_arguments({"tags": given}, {}, environment)["tags"] == expected


def test_one_id_for_all_jobs_of_a_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    WandB(Run(tmp_path / "0"), {})
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(ValueError, match="WANDB_RUN_ID is set, and would make all jobs of the sweep one run"):
        WandB(Run(tmp_path / "0"), {})
    monkeypatch.setenv("WANDB_SWEEP_ID", "theirs")  # an agent gives each an id of its own
    WandB(Run(tmp_path / "0"), {})


def test_a_given_id_is_stored_for_a_resume_without_it(tmp_path: Path) -> None:
    file = tmp_path / "wandb" / "id.txt"
    random = _stable_id(file, None)
    assert _stable_id(file, None) == random
    assert _stable_id(tmp_path / "other" / "id.txt", None) != random
    assert _stable_id(file, "given") == _stable_id(file, None) == "given"


def test_names_tell_runs_and_sweeps_apart_within_128_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["schedule=linear", "+model.extra=1", "~metrics"]
    aside = ["resume=true", "logger=[csv,wandb]", "logger.wandb.project=mine", "tags=[x]"]
    run = recorded(Path("runs/2026-01-31/12-00-00"), *words, *aside)
    assert run_name(run, "train") == "schedule=linear +model.extra=1 ~metrics (2026-01-31/12-00-00)"
    assert sweep_group(run) is None
    assert run_name(recorded(Path("runs/2026-01-31/12-00-00-2")), "sample") == "sample (2026-01-31/12-00-00-2)"
    assert run_name(Run("bare"), "train") == f"train ({tmp_path.name}/bare)"
    names = set()
    for sweep in ("12-00-00", "13-00-00"):
        for seed in range(2):
            run = recorded(tmp_path / "sweeps" / "2026-01-31" / sweep / str(seed), f"seed={seed}")
            (run.path.parent / "multirun.yaml").touch()
            assert sweep_group(run) == f"sweeps/2026-01-31/{sweep}"
            names.add(run_name(run, "train"))
    assert names == {f"seed={seed} (2026-01-31/1{hour}-00-00)" for seed in range(2) for hour in (2, 3)}
    shared = "model.width=" + 100 * "8"
    job = recorded(tmp_path / "sweeps" / "2026-01-31" / "14-00-00" / "0", shared, "seed=1", "tags=[x]")
    task = yaml.safe_dump({"hydra": {"overrides": {"task": [shared, "seed=1,2", "tags=[x]"]}}})
    (job.path.parent / "multirun.yaml").write_text(task)
    assert run_name(job, "train").startswith(f"seed=1 {shared[:40]}")  # what differs is not cut off
    long = run_name(recorded(Path("runs/2026-02-01/12-00-00"), "data.root=" + 200 * "x"), "train")
    assert long == "data.root=" + 95 * "x" + "… (2026-02-01/12-00-00)"
    assert len(long) == 128
    assert len(run_name(recorded(Path(100 * "a", 100 * "b"), 200 * "x"), "train")) == 128


@pytest.mark.parametrize(
    ("variables", "options", "blamed"),
    [
        ({}, {"project": "my/project"}, "the project at W&B must have at most 128 characters, none of"),
        ({"WANDB_PROJECT": "a#b"}, {}, "the project at W&B"),
        ({"WANDB_RUN_ID": "a/b"}, {}, "the id at W&B must have at most 64"),
        ({"WANDB_MODE": "bogus"}, {}, "WANDB_MODE must be one of online, offline, disabled, dryrun, run, got bogus"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_training(
    variables: dict[str, str], options: dict[str, str], blamed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=blamed):
        WandB(Run(tmp_path), {}, project=options.get("project"))


@pytest.mark.parametrize("tag", ["", 65 * "x"])
def test_tag_that_wandb_would_refuse_is_refused_before_training(tmp_path: Path, tag: str) -> None:
    with pytest.raises(ValueError, match=f"W&B takes tags of 1 to 64 characters, got '{tag}'"):
        WandB(Run(tmp_path), {"tags": ["good", tag]})


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "k"}, None, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, None, "disabled"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, None, "offline"),
        ({"WANDB_MODE": "online"}, None, "online"),
        (
            {"WANDB_BASE_URL": "https://metrics.example"},
            "machine metrics.example login user password k",
            "online",
        ),
        (
            {"WANDB_BASE_URL": "https://other.example"},
            "machine metrics.example login user password k",
            "offline",
        ),
    ],
)
def test_wandb_is_online_only_where_it_is_asked_or_has_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], netrc: str | None, mode: str
) -> None:
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it remembers the environment's settings
    try:
        assert _wandb_mode() == mode
    finally:
        wandb.teardown()
