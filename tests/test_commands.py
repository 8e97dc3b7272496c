"""The commands on a toy conf: every mistake is one line and exit code 2, and every run has its own folder."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from noising import commands, folders
from noising.configuration import UsageError
from noising.help_text import GROUPS
from noising.sweep import refuse_ddp_sweep

SOURCE = Path(__file__).resolve().parents[1] / "src"

TOY = """
import json
from pathlib import Path

from noising.configuration import make

class Cosine:
    def __init__(self, timesteps: int, offset: float = 0.0): ...

class Linear:
    def __init__(self, steps: int): ...

class Network:
    def __init__(self, channels: int, width: int):
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width

class Trainer:
    def __init__(self, max_steps: int, devices: int | str | list[int] = 1, strategy: str = "auto"): ...

def job(config, run):
    network = make(config.model, "model", object, channels=1)
    if network.width == 13:
        raise RuntimeError("a defect")
    print("RUN", run, config.seed, config.resume)
    (run / "summary.json").write_text(json.dumps({"status": "finished", "test/bound": 1.5 * network.width}))
"""

CONF = {
    "train": """
        defaults: [schedule: cosine, model: unet, trainer: cpu, performance: default, hydra_defaults, _self_]
        seed: 0
        timesteps: 10
        resume: false
        hydra: {help: {header: "train: toy", footer: "  python train.py seed=1"}}
    """,
    "schedule/cosine": "{_target_: toy_parts.Cosine, offset: 0.008}",
    "schedule/linear": "{_target_: toy_parts.Linear, steps: '${timesteps}'}",
    "model/unet": "{_target_: toy_parts.Network, width: 4}",
    "trainer/cpu": "{_target_: toy_parts.Trainer, max_steps: 3, devices: 1, strategy: auto}",
    "performance/default": "{compile: false}",
}

HYDRA = """# @package _global_
hydra:
  run: {dir: "runs/${now:%Y-%m-%d}/${now:%H-%M-%S}"}
  sweep:
    dir: sweeps/${now:%Y-%m-%d}/${now:%H-%M-%S}
    subdir: ${hydra.job.num}_${file_name:${hydra.job.override_dirname}}
  job: {config: {override_dirname: {exclude_keys: [resume]}}}
  callbacks: {sweep_table: {_target_: noising.sweep.SweepTable}}
  help: {template: "${hydra.help.header}\\n${hydra.help.footer}\\n${config_groups:}\\n"}
"""

COSIN = "schedule=cosin: no such choice; did you mean cosine? (choices: cosine, linear)"

Run = Callable[..., tuple[int, str, str]]


def write_conf(folder: Path) -> None:
    for name, text in CONF.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))
    (folder / "hydra_defaults.yaml").write_text(HYDRA)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("toy")
    write_conf(folder / "conf")
    (folder / "toy_parts.py").write_text(TOY)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def run(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the toy command in an empty folder: exit code, stdout, stderr."""
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        code = 0
        try:
            commands.main("train", "toy_parts:job", conf=toy / "conf")
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capfd.readouterr())

    return call


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("schedul=linear", "schedul: no such option; did you mean schedule?"),
        ("+schedul=linear", "schedul: no such option; did you mean schedule?"),
        ("schedule=cosin", COSIN),
        ("trainer.max_step=3", "trainer.max_step: no such option; did you mean trainer.max_steps?"),
        ("max_steps=3", "max_steps: no such option; did you mean trainer.max_steps?"),
        ("+extra=1", "extra: no such option; see --cfg job for all options"),
        ("+performance.compil=true", "performance.compil: no such option; did you mean performance.compile?"),
        (
            "+model.widht=3",
            "model.widht: no such option; did you mean model.width? (Network has: channels, width)",
        ),
        ("model.width=big", "model.width=big: expected int"),
        ("model.width=0", "model: width must be at least 1, got 0"),
        ("model.width=0 hydra.run.dir=a/b", "model: width must be at least 1, got 0"),
        ("model.width=???", "model.width has no value: add model.width=..."),
        ("seed=0,1", "seed=0,1: several values; add -m to sweep over them, or write a list as key=[1,2]"),
        ("schedule=linear timesteps=${nope}", "Interpolation key 'nope' not found; full_key: schedule.steps"),
        ("resume=nope", "resume=nope: no run there (there is no nope/.hydra/overrides.yaml)"),
        ("--config-dir nope", "--config-dir: there is no folder nope"),
        ("--cfg job schedule=cosin", COSIN),
        ("-m schedule=linear,cosin seed=0,1", COSIN),
        ("-m seed=0,1 model.width=4,wide", "model.width=wide: expected int"),
        (
            "-m trainer.devices=2 seed=0,1",
            "a sweep cannot launch DDP subprocesses: add trainer.strategy=ddp_spawn (or run the jobs one by one)",
        ),
    ],
)
def test_mistake_is_one_line_and_leaves_no_folder(run: Run, tmp_path: Path, words: str, line: str) -> None:
    assert run(*words.split()) == (2, "", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_bad_syntax(run: Run) -> None:
    code, _, error = run("a=[")
    assert code == 2
    assert error.startswith("error: cannot read the override 'a=['")
    assert error.count("\n") == 1


def test_a_defect_keeps_its_traceback(run: Run) -> None:
    code, _, error = run("model.width=13")
    assert code == 1
    assert "Traceback" in error
    assert "RuntimeError: a defect" in error


def test_runs_of_one_second_have_their_own_folders(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    OmegaConf.register_new_resolver("noon", lambda: "12-00-00", replace=True)
    for expected in ("12-00-00", "12-00-00-2", "12-00-00-3"):
        config = OmegaConf.create({"hydra": {"run": {"dir": "runs/${noon:}"}}})
        overrides, folder = folders.claim(config, ["seed=1"], multirun=False)
        assert overrides == ["seed=1", f"hydra.run.dir='runs/{expected}'"]
        assert folder == Path("runs", expected)


def test_folder_that_holds_a_run_is_not_written_over(run: Run) -> None:
    assert run("hydra.run.dir=mine")[0] == 0
    code, _, error = run("hydra.run.dir=mine")
    assert code == 2
    assert error == "error: hydra.run.dir=mine already holds a run: choose another, or add resume=true\n"


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

    finder = types.ModuleType("noising.training.run")
    finder.find_resumable = finder.find_sweep = find  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "noising.training.run", finder)

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


def test_resume_of_a_sweep(run: Run, tmp_path: Path) -> None:
    assert run("-m", "seed=0,1")[0] == 0
    (sweep,) = (tmp_path / "sweeps").glob("*/*")
    code, out, _ = run("-m", f"resume={sweep}")
    assert code == 0
    assert f"RUN {sweep}/1_seed=1 1 True" in out
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0_seed=0", "1_seed=1"]
    assert run(f"resume={sweep}")[2] == f"error: resume={sweep}: this is a sweep's folder; add -m\n"


def test_sweep_goes_on_after_a_failure_and_leaves_a_table(run: Run, tmp_path: Path) -> None:
    code, out, error = run("-m", "model.width=2,0,13,6")
    assert code == 2  # the worst of the jobs'
    assert "error: job 1 (model.width=0): model: width must be at least 1, got 0\n" in error
    assert "RuntimeError: a defect" in error
    (file,) = (tmp_path / "sweeps").glob("*/*/sweep.csv")
    with file.open() as lines:
        table = list(csv.DictReader(lines))
    assert [(row["model.width"], row["status"], row["test/bound"]) for row in table] == [
        ("2", "finished", "3.0"),
        ("0", "failed", ""),
        ("13", "failed", ""),
        ("6", "finished", "9.0"),
    ]
    assert table[3]["folder"] == "3_model.width=6"
    assert "test/bound" in out


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


def test_other_ranks_use_the_parents_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's child gets the parent's command line and hydra.run.dir, which holds a run by then."""
    assert run("seed=2")[0] == 0
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert sys.argv == ["train.py", "seed=2", f"hydra.run.dir='{folder.relative_to(tmp_path)}'"]
    before = (folder / ".hydra" / "overrides.yaml").read_text()
    monkeypatch.setenv("LOCAL_RANK", "1")
    child = [
        f'hydra.run.dir="{folder.relative_to(tmp_path)}"',
        "hydra.job.name=child",
        "hydra.output_subdir=null",
    ]
    code, _, error = run(*sys.argv[1:], *child, "model.width=0")
    assert (code, error) == (2, "")  # rank 0 says it
    assert folder.is_dir()
    assert (folder / ".hydra" / "overrides.yaml").read_text() == before


def test_launched_ranks_agree_on_a_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create({"hydra": {"run": {"dir": "runs/${now:%S}"}}})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night/1")
    assert folders.claim(config, [], False) == (["hydra.run.dir='runs/torchrun-night-1'"], None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    one, two = folders.claim(config, [], False), folders.claim(config, [], False)
    assert one == two
    assert str(os.getppid()) in one[0][0]
    assert not Path("runs").exists()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="rdzv-id"):
        folders.claim(config, [], False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert folders.claim(config, [], False) == (["hydra.run.dir='runs/slurm-71-0'"], None)
    assert run("-m", "seed=0,1")[2].startswith("error: a sweep cannot run under torchrun or srun")


def test_help_is_short_and_lists_the_groups(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "cosine, linear" in out
    assert GROUPS["schedule"] in out
    assert "_target_" not in out


@pytest.mark.parametrize(
    ("command", "takes", "not_these"),
    [
        ("evaluate", {"bound", "sampler", "guidance", "logger"}, {"schedule", "trainer", "benchmark"}),
        ("train", {"experiment", "logger", "weighting"}, {"guidance", "solver"}),
    ],
)
def test_help_lists_the_groups_that_the_command_takes(command: str, takes: set[str], not_these: set[str]) -> None:
    script = Path(__file__).parents[1] / ("train.py" if command == "train" else f"scripts/{command}.py")
    out = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  (\w+)  +\S", out, re.MULTILINE))
    assert takes <= listed
    assert not listed & not_these


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--cfg job --package model", "width: 4"),
        ("--cfg job --resolve", "width: 4"),
        ("--hydra-help", "--multirun"),
        ("--info defaults", "schedule/cosine"),
    ],
)
def test_flags_of_hydra_pass_through(run: Run, words: str, shown: str) -> None:
    code, out, _ = run(*words.split())
    assert code == 0
    assert shown in out


def test_every_group_has_its_words() -> None:
    conf = commands.conf_dir()
    if not (conf / "train.yaml").is_file():
        pytest.skip("no conf/ yet")
    groups = {path.name for path in conf.iterdir() if path.is_dir() and any(path.glob("*.yaml"))}
    assert groups - {"hydra"} == set(GROUPS)


def test_installed_command_finds_a_users_class_in_the_current_folder(toy: Path, tmp_path: Path) -> None:
    """As from a wheel: sys.path[0] is not the current folder, where mine.py lies beside
    mine/schedule/mine.yaml.
    """
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "mine.yaml").write_text("{_target_: mine_parts.Mine, strength: 2}")
    (tmp_path / "mine_parts.py").write_text("class Mine:\n    def __init__(self, strength: int): ...\n")
    script = tmp_path / "bin" / "noising"
    script.parent.mkdir()
    script.write_text(
        "from pathlib import Path\nfrom noising import commands\n"
        f"commands.conf_dir = lambda: Path({str(toy / 'conf')!r})\n"
        "commands.COMMANDS = {'train': ('toy_parts:job', 'toy')}\ncommands.cli()\n"
        "import sys\nassert not {'torch', 'lightning'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(toy)])}

    def noising(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = noising("train", "--config-dir", "mine", "schedule=mine", "hydra.run.dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "finished"
    wrong = noising("train", "--config-dir", "mine", "schedule=mine", "schedule.strength=x")
    assert (wrong.returncode, wrong.stderr) == (2, "error: schedule.strength=x: expected int\n")
    assert noising("trian").stderr == "error: trian: no such command; did you mean train?\n"
