"""A run's folder: what it says of itself, and which one is found to go on with."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from noising.runs.folder import Run, run_folder


def test_a_run_from_start_to_finish(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "b")
    assert (run.status, run.summary) == ("none", {})
    config = {"seed": 1, "model": {"width": 8, "rate": 1e-05}, "tags": ["x"]}
    run.start(config)
    assert (run.status, run.config) == ("running", config)
    run.update({"test/bound": torch.tensor(2.5), "test/fd": float("nan")}, cards={"test/bound": {"images": 10}})
    run.update({"test/steps": np.int64(7), "ended": "early"}, cards={"test/fd": {"features": "x"}})
    run.finish("interrupted", {"test/prior": float("inf")})
    run.start(config)
    run.finish("finished", {})
    assert json.loads(run.summary_file.read_text()) == {
        "status": "finished",
        "test/bound": 2.5,
        "test/fd": None,
        "cards": {"test/bound": {"images": 10}, "test/fd": {"features": "x"}},
        "test/steps": 7,
        "test/prior": None,
    }
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "environment.json", "summary.json"]


def test_the_words_to_go_on_with_are_a_shells_and_hydras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run(tmp_path / "runs" / "12-00-00").resuming == "resume=runs/12-00-00"
    assert shlex.split(Run(tmp_path / "it's, a=b").resuming) == ['resume="it\'s, a=b"']
    job = tmp_path / "sweeps" / "noon" / "0_seed-1"
    job.mkdir(parents=True)
    (job.parent / "multirun.yaml").touch()
    assert Run(job).resuming == "-m resume=sweeps/noon"


def test_a_run_is_found_by_its_checkpoints(tmp_path: Path) -> None:
    run = Run(tmp_path / "checkpoints")  # a run of the user's, of that name
    run.start({})
    for path in (run.path, run.last_checkpoint.parent, run.last_checkpoint):
        assert run_folder(path) == run.path
    for path in (tmp_path, run.best_checkpoint, tmp_path / "no_run" / "checkpoints"):
        assert run_folder(path) == path


def test_environment_names_versions_and_hides_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "sesame1")
    secrets = ["logger.wandb.api_key=sesame2", "+token=sesame3", "data.url=https://me:sesame4@host/x"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/noising", "train", "seed=3", *secrets])
    run = Run(tmp_path)
    run.start({"logger": {"api_key": "sesame5", "keys": "shown"}, "url": "https://sesame6@host"})
    environment = json.loads(run.environment_file.read_text())
    assert environment["argv"][:3] == ["noising", "train", "seed=3"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "sesame" not in "".join(file.read_text() for file in tmp_path.iterdir())
    assert run.config["logger"] == {"api_key": "***", "keys": "shown"}


def test_crash_while_writing_leaves_the_old_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.start({})

    def crash(descriptor: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", crash)
    run.finish("finished", {})
    assert run.unwritten == {run.summary_file: "power cut"}
    assert Run(tmp_path).status == "running"


@pytest.mark.parametrize("content", ['{"status": "fin', "", "[]", "\xff"])
def test_damaged_summary_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    run = Run(tmp_path)
    run.summary_file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^\S*summary\.json is damaged[^\n]*$"):
        _ = run.status


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.yaml"):
        _ = Run(tmp_path).config
