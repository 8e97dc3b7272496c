"""A toy conf and its command, which every mistake and every folder can be tried on in no time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noising.cli.commands import COMMANDS, Command
from noising.cli.main import main

TOY = """
import json
from pathlib import Path

from noising.config.instantiate import make

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
    def __init__(self, max_steps: int, devices: int | str | list[int] = 1, strategy: str = "auto", **other): ...

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
    "trainer/cpu": "{_target_: toy_parts.Trainer, max_steps: 3, devices: 1, strategy: auto, val_check_interval: 1, "
    "log_every_n_steps: 1, accumulate_grad_batches: 1}",
    "performance/default": "{compile: false}",
}

HYDRA = """# @package _global_
hydra:
  run: {dir: "runs/${now:%Y-%m-%d}/${now:%H-%M-%S}"}
  sweep:
    dir: sweeps/${now:%Y-%m-%d}/${now:%H-%M-%S}
    subdir: ${job_folder:${hydra.sweep.dir},${hydra.job.num},${hydra.job.override_dirname}}
  job: {config: {override_dirname: {exclude_keys: [resume]}}}
  callbacks: {sweep_table: {_target_: noising.cli.sweeps.SweepTable}}
  help: {template: "${hydra.help.header}\\n${hydra.help.footer}\\n${config_groups:}\\n"}
"""

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
    monkeypatch.setitem(COMMANDS, "train", Command("toy_parts:job", "toy", "runs", "sweeps"))

    def call(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            main("train", words, toy / "conf")
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capfd.readouterr())

    return call
