"""A sweep is a run for each choice, one table, and can go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from noising.cli.sweeps import print_table, refuse_ddp_sweep
from noising.errors import UsageError
from noising.runs.folder import Run as Job
from tests.helpers import read_table

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("names", [["0_seed-0", "1_seed-1"], ["0_seed=0", "1_seed=1"]], ids=["now", "earlier"])
def test_resume_of_a_sweep(run: Run, tmp_path: Path, names: list[str]) -> None:
    """Its jobs go on in the folders that they have, under the names of an earlier version too."""
    assert run("-m", "seed=0,1")[0] == 0
    (sweep,) = (tmp_path / "sweeps").glob("*/*")
    for job, name in zip(sorted(path for path in sweep.iterdir() if path.is_dir()), names, strict=True):
        job.rename(sweep / name)
    code, out, _ = run("-m", f"resume={sweep}")
    assert code == 0
    assert f"RUN {sweep / names[1]} 1 True" in out
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == names
    assert run(f"resume={sweep}")[2] == f"error: resume={sweep}: this is a sweep's folder; add -m\n"


def test_sweep_goes_on_after_a_failure_and_leaves_a_table(run: Run, tmp_path: Path) -> None:
    code, out, error = run("-m", "model.width=2,0,13,6")
    assert code == 2  # the worst of the jobs'
    assert "error: job 1 (model.width=0): model: width must be at least 1, got 0\n" in error
    assert "RuntimeError: a defect" in error
    (file,) = (tmp_path / "sweeps").glob("*/*/sweep.csv")
    table = read_table(file)
    assert [(row["model.width"], row["status"], row["test/bound"]) for row in table] == [
        ("2", "finished", "3.0"),
        ("0", "failed", ""),
        ("13", "failed", ""),
        ("6", "finished", "9.0"),
    ]
    assert table[3]["folder"] == "3_model.width-6"
    reasons = ["", "model: width must be at least 1, got 0", "RuntimeError: a defect", ""]
    assert [row["error"] for row in table] == reasons
    for row in table[1:3]:
        job = Job(file.parent / row["folder"])
        assert (job.status, job.summary["error"]) == ("failed", row["error"])
        assert row["error"].removeprefix("RuntimeError: ") in (job.path / "train.log").read_text()
    assert "test/bound" in out


def test_a_table_shows_what_jobs_say_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No markup of rich in an override, no reference resolved, nothing that a terminal would obey."""
    sweep = tmp_path / "\x1b[2J[b]"
    for number, word in enumerate(("seed=[/b]", "seed=\x1b]0;owned\a", "[red]x=${oc.env:HOME}", "+data.token=5ec4e7")):
        (sweep / str(number) / ".hydra").mkdir(parents=True)
        (sweep / str(number) / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([word]))
    print_table(sweep)
    said = capsys.readouterr().out
    for words in ("[2J[b]", "[/b]", "]0;owned", "[red]x", "${oc.env:HOME}", "***"):
        assert words in said
    assert "\x1b" not in said
    assert "5ec4e7" not in said


@pytest.mark.parametrize(
    ("trainer", "refused"),
    [
        ({"devices": 2}, True),
        ({"devices": [0, 1], "strategy": "ddp"}, True),
        ({"devices": "2"}, True),
        ({"devices": 1, "num_nodes": 2}, True),
        ({"devices": 2, "strategy": "ddp_spawn"}, False),
        ({"devices": [0]}, False),
        ({"devices": "auto", "accelerator": "cpu"}, False),
    ],
)
def test_ddp_in_a_sweep(trainer: dict[str, Any], refused: bool) -> None:
    config = OmegaConf.create({"trainer": trainer})
    if refused:
        with pytest.raises(UsageError, match="ddp_spawn"):
            refuse_ddp_sweep(config)
    else:
        refuse_ddp_sweep(config)
