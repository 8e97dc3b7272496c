"""Every run has a folder of its own, and one that goes on has the one it had."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from noising.cli import folders
from noising.errors import UsageError

Run = Callable[..., tuple[int, str, str]]


def test_runs_of_one_second_have_their_own_folders(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    OmegaConf.register_new_resolver("noon", lambda: "12-00-00", replace=True)
    for expected in ("12-00-00", "12-00-00-2", "12-00-00-3"):
        config = OmegaConf.create({"hydra": {"run": {"dir": "runs/${noon:}"}}})
        assert folders.claim(config.copy(), ["seed=1"], multirun=False) == Path("runs", expected)


def test_folder_that_holds_a_run_is_not_written_over(run: Run) -> None:
    assert run("hydra.run.dir=mine")[0] == 0
    line = "error: hydra.run.dir=mine already holds a run: choose another folder, or add resume=true\n"
    for resume in ("false", "no", "off"):
        assert run("hydra.run.dir=mine", f"resume={resume}") == (2, "", line)


def test_folder_names(run: Run, tmp_path: Path) -> None:
    odd = "a b,c=d'e"
    escaped = odd.replace("'", "\\'")
    assert run(f"hydra.run.dir='{escaped}'")[0] == 0
    assert (tmp_path / odd / "summary.json").exists()
    long = folders._file_name("x/" * 300)
    assert len(long.encode()) == 200
    assert "/" not in long
    assert long != folders._file_name("x/" * 301)


def test_resume(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    found: list[Path | None] = [None]

    def find(root: Path, overrides: list[str]) -> Path | None:
        asked.append((root, overrides))
        return found[0]

    monkeypatch.setattr(folders, "find_resumable", find)

    code, out, _ = run("seed=3", "resume=true")
    assert code == 0
    assert "resume: no unfinished run of this command under runs/; starting a new one" in out
    assert asked == [(Path("runs"), ["seed=3"])]
    (first,) = (tmp_path / "runs").glob("*/*")
    assert f"RUN {first} 3 False" in out

    found[0] = first
    code, out, _ = run("seed=3", "resume=true")
    assert code == 0
    assert f"RUN {first} 3 True" in out
    code, out, _ = run(f"resume={first}")  # the overrides recorded there, but not its `resume`
    assert code == 0
    assert f"RUN {first} 3 True" in out
    code, out, _ = run(f"resume={first}", "seed=4")
    assert code == 0
    assert f"RUN {first} 4 True" in out
    assert list((tmp_path / "runs").glob("*/*")) == [first]


def test_other_ranks_use_the_parents_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's child gets the parent's command line and hydra.run.dir, where the parent has written its options."""
    assert run("seed=2")[0] == 0
    (folder,) = (tmp_path / "runs").glob("*/*")
    record = folder / ".hydra" / "overrides.yaml"
    before = record.read_text()
    monkeypatch.setenv("LOCAL_RANK", "1")
    child = [
        f'hydra.run.dir="{folder.relative_to(tmp_path)}"',
        "hydra.job.name=child",
        "hydra.output_subdir=null",
    ]
    code, out, _ = run("seed=2", *child)
    assert (code, f"RUN {folder} 2 False" in out) == (0, True)
    assert record.read_text() == before
    record.write_text("- seed=7\n")  # what the first has made of `resume=PATH`, say
    assert f"RUN {folder} 7 False" in run("seed=2", *child)[1]
    record.write_text("- model.width=0\n")
    code, _, error = run("seed=2", *child)
    assert (code, error) == (2, "")  # rank 0 says it
    assert folder.is_dir()


def test_launched_ranks_agree_on_a_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create({"hydra": {"run": {"dir": "runs/${now:%S}"}}})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night/1")

    def agreed() -> str:
        mine = config.copy()
        assert folders.claim(mine, [], False) is None
        return str(mine.hydra.run.dir)

    assert agreed() == "runs/torchrun-night-1"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert agreed() == agreed()
    assert str(os.getppid()) in agreed()
    assert not Path("runs").exists()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="rdzv-id"):
        agreed()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert agreed() == "runs/slurm-71-0"
    assert run("-m", "seed=0,1")[2].startswith("error: a sweep cannot run under torchrun or srun")
