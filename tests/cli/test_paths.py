"""A file or a folder is named as it is, whatever characters its name holds."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from noising.cli import folders
from noising.cli.paths import with_paths
from noising.config.words import quoted
from noising.runs.folder import Run as Job
from tests.helpers import Command, read_table

Run = Callable[..., tuple[int, str, str]]

ODD = """0_a=b, c~é(#%'"$[{\\"""
"""The name of a file that no shell, no grammar and no pattern takes without quotes."""


@pytest.mark.parametrize(
    "option",
    [
        *("checkpoint", "from", "to", "resume", "data.root", "guidance.guide.checkpoint", "metrics.reference"),
        *("metrics.dinov2_repo", "metrics.dinov2_weights", "metrics.inception_weights", "hydra.run.dir"),
        *("hydra.sweep.dir", "+trainer.default_root_dir", "+logger.mine.save_dir", "++metrics.metric.weights_path"),
    ],
)
@pytest.mark.parametrize("multirun", [False, True])
def test_a_path_is_taken_as_it_is_typed(option: str, multirun: bool) -> None:
    name = ODD.replace(",", "")  # under -m a comma stands between two paths
    assert with_paths([f"{option}={name}"], multirun) == [f"{option}={quoted(name)}"]


@pytest.mark.parametrize(
    ("word", "becomes"),
    [
        ("checkpoint=~/runs/a", "checkpoint=/home/me/runs/a"),
        ("data.root='~/a b'", 'data.root="/home/me/a b"'),
        (r"data.root='it\'s'", 'data.root="it\'s"'),
        ("hydra.run.dir=2026_01_31", 'hydra.run.dir="2026_01_31"'),  # Hydra would read a number
        ("data.root=${oc.env:HOME}/a b", 'data.root="${oc.env:HOME}/a b"'),
        ("resume=TRUE", "resume=TRUE"),
        ("resume=no", "resume=no"),
        ("from=null", "from=null"),
        ("checkpoint=???", "checkpoint=???"),
        ("hydra.run.dir=", "hydra.run.dir="),
        ("checkpoint=a,b", 'checkpoint="a,b"'),
        ("checkpoint=here,there", "checkpoint=here,there"),  # a forgotten -m, of which the next line tells
        ("hydra.run.dir=here,there", 'hydra.run.dir="here,there"'),
        ("checkpoint=both,one", 'checkpoint="both,one"'),
        ("runs=[a=b, 'c,d',~/e]", 'runs=["a=b","c,d",/home/me/e]'),
        ("model.attention=[4]", "model.attention=[4]"),
        ("tags=[first,a b]", "tags=[first,a b]"),
        ("~data.root=a=b", '~data.root="a=b"'),
    ],
)
def test_a_path_becomes_a_value_of_hydras(
    word: str, becomes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    for name in ("here", "there", "both,one", "both", "one"):
        Path(name).mkdir()
    assert with_paths([word], multirun=False) == [becomes]


@pytest.mark.parametrize(
    ("word", "becomes"),
    [
        ("checkpoint=a=1,'b,c',~/d", 'checkpoint="a=1","b,c",/home/me/d'),
        ("checkpoint=both,one", 'checkpoint="both,one"'),
        ("checkpoint='both,two'", 'checkpoint="both,two"'),
        ("checkpoint=choice(a,b)", "checkpoint=choice(a,b)"),
        ("resume=a,b", 'resume="a,b"'),
        ("hydra.sweep.dir=a,b", 'hydra.sweep.dir="a,b"'),
    ],
)
def test_a_comma_of_a_sweep(word: str, becomes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    Path("both,one").mkdir()
    assert with_paths([word], multirun=True) == [becomes]


def test_a_run_in_a_folder_of_any_name_goes_on(run: Run, tmp_path: Path) -> None:
    assert run("seed=3", f"+trainer.log_dir={ODD}", f"hydra.run.dir={ODD}")[0] == 0
    folder = tmp_path / ODD
    Job(folder).start({})
    for path in (folder, folder.relative_to(tmp_path), folder / "checkpoints", folder / "checkpoints" / "last.ckpt"):
        code, out, _ = run(f"resume={path}")
        assert (code, f"RUN {folder} 3 True" in out) == (0, True)
        assert yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["trainer"]["log_dir"] == ODD
    (word,) = shlex.split(Job(folder).resuming)
    assert f"RUN {folder} 3 True" in run(word)[1]
    best = folder / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    line = f"resume={best}: this is a file; give the run's folder: it goes on from last.ckpt"
    assert run(f"resume={best}") == (2, "", f"error: {line}\n")


def test_the_command_in_a_mistake_can_be_pasted(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / f"two  spaces {ODD}"
    assert run("-m", "seed=0,1", f"hydra.sweep.dir={folder}")[0] == 0
    error = run("-m", "seed=0,2", f"resume={folder}")[2]
    (command,) = re.findall(r"go on with (-m .*) alone", error)
    code, out, _ = run(*shlex.split(command))
    assert (code, f"RUN {folder / '1_seed-1'} 1 True" in out) == (0, True)


def test_a_rank_of_lightnings_writes_in_a_folder_of_any_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("seed=3", f"hydra.run.dir={ODD}")
    assert run(*words)[0] == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    theirs = (f'hydra.run.dir="{ODD}"', "hydra.job.name=child", "hydra.output_subdir=null")  # as Lightning quotes it
    assert f"RUN {tmp_path / ODD} 3 False" in run(*words, *theirs)[1]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("schedule=cosine,seed=0", "3_schedule-cosine_seed-0"),
        ("sampler.clip=-1", "3_sampler.clip--1"),
        ("model.multipliers=[1,2],optimizer.lr=1e-4", "3_model.multipliers-1_2_optimizer.lr-1e-4"),
        ('+data.root="é/a b (c)"', "3_+data.root-a-b-c"),
    ],
)
def test_a_job_has_a_name_that_needs_no_quotes(overrides: str, name: str) -> None:
    assert folders._job_folder("sweeps/noon", 3, overrides) == name
    assert (shlex.quote(name), quoted(f"sweeps/noon/{name}")) == (name, f"sweeps/noon/{name}")
    assert len(folders._job_folder("sweeps/noon", 10**6, 99 * overrides)) <= 255


def test_the_jobs_of_a_sweep_have_such_names(run: Run, tmp_path: Path) -> None:
    assert run("-m", "+trainer.notes='é (a=b), c',[d]", "hydra.sweep.dir=s")[0] == 0
    assert {path.name for path in (tmp_path / "s").iterdir() if path.is_dir()} == {
        "0_+trainer.notes-a-b_-c",
        "1_+trainer.notes-d",
    }
    assert [row["trainer.notes"] for row in read_table(tmp_path / "s" / "sweep.csv")] == ["é (a=b), c", "[d]"]


def test_a_folder_of_configs_may_be_at_home(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("--config-dir=~/nope")[2] == f"error: --config-dir: there is no folder {tmp_path}/nope\n"


def test_a_run_in_a_folder_of_any_name_is_sampled_and_compared(
    noising: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (ODD, "0_seed=0"):
        shutil.copytree(trained, tmp_path / name)
    for path in (f"~/{ODD}", "0_seed=0/checkpoints", "0_seed=0/checkpoints/last.ckpt"):
        drawn = noising("sample", f"checkpoint={path}", "n=1", "sampler.steps=1", "hydra.run.dir=x,y/a=b")
        assert drawn.code == 0, drawn.err
        shutil.rmtree(tmp_path / "x,y" / "a=b")
    compared = noising("compare", f"~/{ODD}", "0_seed=0/checkpoints", "vary=decoder")
    assert (compared.code, "test/bound" in compared.out) == (0, True), compared.err
    for path in ("sweeps/1_seed=1", f"{ODD}/1"):
        absent = noising("compare", "0_seed=0", path)
        assert absent.err.startswith(f"error: runs: {path} holds no summary.json")
