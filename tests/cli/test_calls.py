"""A command called from Python: the command line's run, errors that are raised, and a process that is as it was."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback

from noising.cli.calls import call, composed, process_as_before
from noising.errors import ConfigError, UsageError
from tests.helpers import CONF, SMALL, run_command

FEW = [*SMALL, "trainer.max_steps=5", "callbacks.samples=null"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def process_state() -> dict[str, Any]:
    """All that a command must leave as it was."""
    root = logging.getLogger()
    return {
        "random": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "argv": sys.argv[:],
        "path": sys.path[:],
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "folder": Path.cwd(),
        "handlers": (root.handlers[:], root.level, logging.getLogger("lightning.pytorch").filters[:]),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "warnings": warnings.filters[:],
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
    }


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Require that the block leaves the process as it was."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = process_state()
    yield
    after = process_state()
    for name, state in before.items():
        assert after[name] == state, name


def numbers(folder: Path) -> dict[str, float]:
    """The numbers of a run's summary, but those of the clock."""
    summary = json.loads((folder / "summary.json").read_text())
    return {name: value for name, value in summary.items() if "/" in name and "second" not in name}


def test_a_call_is_the_run_of_the_command_line(tmp_path: Path) -> None:
    with process_unchanged():
        folder = call("train", [*FEW, "threads=1", "hydra.run.dir=from python"])
    assert run_command("train", tmp_path, *FEW, "threads=1", "hydra.run.dir=line").code == 0
    assert folder == Path("from python")
    assert numbers(folder) == numbers(tmp_path / "line")
    assert len(numbers(folder)) > 10
    assert "planned evaluations of the network" in (folder / "train.log").read_text()
    config, line = ((path / "config.yaml").read_text() for path in (folder, tmp_path / "line"))
    assert config == line


def test_mistakes_are_raised_in_the_words_of_the_command_line(tmp_path: Path) -> None:
    for word in ("schedul=linear", "model.width=7.5", "trainer.max_steps=0", "model.heads=3", "data.batch_size=99999"):
        with process_unchanged(), pytest.raises(UsageError) as raised:
            call("train", [*FEW, word])
        assert run_command("train", tmp_path, *FEW, word).err == f"error: {raised.value}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == []  # nothing came of them


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=0,1", "seed=0,1: a call from Python takes one value; call it once for each"),
        ("-m", "'-m': expected an option as on the command line: 'key=value', in quotes"),
        ("linear", "'linear': expected an option as on the command line: 'key=value', in quotes"),
        (3, "3: expected an option as on the command line: 'key=value', in quotes"),
        ("allow=mine", "allow=mine: in a call from Python, use the argument allow='mine'"),
        ("trainer.devices=2", "trainer.devices=2: from Python, several devices need "),
    ],
)
def test_what_only_a_command_line_takes_is_refused(word: Any, line: str) -> None:
    with pytest.raises(UsageError) as raised:
        call("train", [word])
    assert str(raised.value).startswith(line)
    assert list(Path().iterdir()) == []


class Fails(Callback):
    """Raises in the middle of a training."""

    def __init__(self, name: str) -> None:
        self.error: type[BaseException] = {"key": KeyboardInterrupt, "defect": RuntimeError}[name]

    def on_train_batch_end(self, *args: Any) -> None:
        raise self.error("in the middle")


@pytest.mark.parametrize(
    ("name", "error", "status"), [("key", KeyboardInterrupt, "interrupted"), ("defect", RuntimeError, "failed")]
)
def test_what_ends_the_work_is_raised(name: str, error: type[BaseException], status: str) -> None:
    fails = "+callbacks.fails={_target_: tests.cli.test_calls.Fails, name: " + name + "}"
    with process_unchanged(), pytest.raises(error):
        call("train", [*FEW, fails, "hydra.run.dir=run"])
    assert json.loads(Path("run", "summary.json").read_text())["status"] == status


def test_handlers_of_ones_own_hear_and_stay_open() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with process_unchanged():
            call("train", [*FEW, "hydra.run.dir=run"])
        assert stream.getvalue().count("planned evaluations of the network") == 1
        assert root.handlers[-1] is handler
        root.error("afterwards")
        assert stream.getvalue().endswith("afterwards\n")
    finally:
        root.removeHandler(handler)


def test_hydra_of_ones_own_goes_on() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="mine"):
        own = GlobalHydra.instance().hydra
        with process_unchanged():
            assert composed("sample", ["checkpoint=x", "n=3"]).n == 3
        assert GlobalHydra.instance().hydra is own


def test_a_composed_config_is_checked() -> None:
    assert "hydra" not in composed("train", [])
    with pytest.raises(ConfigError, match="n must be a whole number from 1"):
        composed("sample", ["checkpoint=x", "n=0"])
    with pytest.raises(ConfigError, match="checkpoint has no value"):
        composed("sample", [])


def test_changes_are_undone_where_the_work_raises() -> None:
    def work() -> None:
        random.random()
        np.random.rand()
        torch.rand(1)
        torch.set_num_threads(3)
        sys.argv.append("x")
        os.environ["NEW"] = "1"
        os.environ["OMP_NUM_THREADS"] = "7"
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        logging.getLogger("lightning.pytorch").addFilter(lambda record: False)
        warnings.simplefilter("error")
        raise ZeroDivisionError

    with process_unchanged(), pytest.raises(ZeroDivisionError), process_as_before():
        work()
