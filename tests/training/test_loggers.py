"""metrics.csv through crashes and resumes; TensorBoard and W&B in the run's folder; the `logger` options."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from noising.runs.folder import Run
from noising.training.loggers import CSVMetrics, build_loggers, close_loggers, log_image
from tests.helpers import CONF


def text(run: Run) -> str:
    return run.metrics.read_text()


def test_calls_at_one_step_are_one_row_and_new_names_widen_the_table(tmp_path: Path) -> None:
    run = Run(tmp_path)
    csv = CSVMetrics(run)
    csv.log_metrics({"train/loss": 0.1, "epoch": 0}, step=10)
    csv.log_metrics({"train/loss": 1e-7, "epoch": 0}, step=20)
    csv.finalize("success")
    assert text(run) == "step,train/loss\n10,0.1\n20,1e-07\n"
    csv.log_metrics({"val/bound": math.nan, "a,b": math.inf}, step=20)
    csv.log_metrics({"train/loss": 3}, step=30)
    csv.save()
    csv.finalize("success")
    csv.finalize("success")
    assert text(run) == 'step,train/loss,val/bound,"a,b"\n10,0.1,,\n20,1e-07,nan,inf\n30,3,,\n'


def test_a_number_that_is_logged_again_at_its_step_is_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path)
    csv = CSVMetrics(run)
    csv.log_metrics({"a": 1.0}, step=1)
    csv.log_metrics({"a": 2.0}, step=2)
    csv.log_metrics({"a": 2.5}, step=2)
    csv.log_metrics({"b": 5.0}, step=2)
    assert [*csv.results.rows()] == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.5, "b": 5.0}]
    csv.finalize("success")
    assert text(run) == "step,a,b\n1,1.0,\n2,2.5,5.0\n"


def log(csv: CSVMetrics, first: int, last: int) -> None:
    for step in range(first, last + 1):
        csv.log_metrics({"train/loss": 1 / step}, step=step)
        if step % 4 == 0:
            csv.log_metrics({"val/bound": step / 3, "val/images": step}, step=step)


@pytest.mark.parametrize("resumed", [3, 6, 8])  # before a column comes; without and with a validation at the checkpoint
@pytest.mark.parametrize("torn", ["", '{"step": 12, "train/lo'])
@pytest.mark.parametrize("earlier", [False, True])  # the folder of a version that kept a table alone
def test_resumed_table_equals_the_uninterrupted_one_byte_for_byte(
    tmp_path: Path, resumed: int, torn: str, earlier: bool
) -> None:
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    csv = CSVMetrics(whole)
    log(csv, 1, 14)
    csv.finalize("success")
    csv = CSVMetrics(broken)
    log(csv, 1, 11)  # killed
    if earlier:
        csv.finalize("failed")
        broken.metrics_record.unlink()
    with (broken.metrics if earlier else broken.metrics_record).open("a") as file:
        file.write("11,0.090" if torn and earlier else torn)
    csv = CSVMetrics(broken)
    csv.results.resume_from(resumed)
    assert csv.results.rows() == CSVMetrics(whole).results.rows()[:resumed]
    csv.log_metrics({"train/loss": 1 / resumed}, step=resumed)  # what the step itself logs again is no second row
    log(csv, resumed + 1, 14)
    csv.finalize("success")
    assert text(broken) == text(whole)


def test_a_line_that_a_kill_has_cut_off_is_dropped_without_a_resume_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    CSVMetrics(run).log_metrics({"a": 1.0}, step=1)
    with run.metrics_record.open("a") as file:
        file.write('{"step": 2, "a"')
    assert CSVMetrics(run).results.rows() == [{"step": 1, "a": 1.0}]
    csv = CSVMetrics(run)
    csv.log_metrics({"a": 3.0}, step=3)
    csv.finalize("success")
    assert text(run) == "step,a\n1,1.0\n3,3.0\n"


def test_resume_without_a_record_begins_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    csv = CSVMetrics(run)
    csv.results.resume_from(5)
    csv.log_metrics({"a": 1.0}, step=6)
    csv.finalize("success")
    assert text(run) == "step,a\n6,1.0\n"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ([], ["CSVMetrics"]),
        (["logger=csv"], ["CSVMetrics"]),
        (["logger=wandb"], ["CSVMetrics", "WandB"]),
        (["logger=[csv,wandb]"], ["CSVMetrics", "WandB"]),
        (["logger=[tensorboard,wandb]"], ["CSVMetrics", "TensorBoard", "WandB"]),
        (["logger=wandb", "logger.wandb.project=mine"], ["CSVMetrics", "WandB"]),
    ],
)
def test_every_choice_of_loggers_builds(tmp_path: Path, choice: list[str], names: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [{logger: [csv]}, _self_]\n")
    search = [f"hydra.searchpath=[file://{CONF}]"]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("config", overrides=[*search, *choice])
    run = Run(tmp_path / "run")
    loggers = build_loggers(run, {"seed": 1}, instantiate(cfg.logger))
    assert [type(logger).__name__ for logger in loggers] == names
    if len(choice) == 2:
        assert OmegaConf.select(cfg, "logger.wandb.project") == loggers[1].name == "mine"


def test_image_reaches_tensorboard_and_leaves_the_table_alone(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    from noising.training.loggers import TensorBoard

    run = Run(tmp_path)
    loggers = [CSVMetrics(run), TensorBoard(run)]
    log_image(loggers, "samples", np.full((6, 4), 200, np.uint8), step=7)
    for logger in loggers:
        logger.log_metrics({"a": 0.5}, step=7)
    close_loggers(loggers)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    image = events.Images("samples")[0]
    assert (image.step, image.height, image.width) == (7, 6, 4)
    assert (events.Scalars("a")[0].step, events.Scalars("a")[0].value) == (7, 0.5)
    assert text(run) == "step,a\n7,0.5\n"


def finished_records(folder: Path) -> list[Any]:
    """The records, once wandb's own process, which writes behind our backs, has written that of the exit."""
    for _ in range(100):
        found = records(folder)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError("wandb has not written the end of the run within 10 s")


def records(folder: Path) -> list[Any]:
    """The records of an offline run: a 7-byte header, then protobufs in 32 KiB blocks of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined,unused-ignore]

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, found, part = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last of its parts
            found.append(Record.FromString(part))
            part = b""
    return found


def test_wandb_without_a_key_records_offline_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from noising.training.loggers import WandB

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", None)  # whoever asks a question fails
    ids = []
    for job in ("one", "two"):  # as in a sweep: the second run begins when the first is over
        run = Run(tmp_path / job)
        run.path.mkdir()
        logger = WandB(run, {"seed": 3, "api_key": "sesame"})
        logger.log_metrics({"val/bound": 2.5}, step=40)
        log_image([logger], "samples", np.zeros((8, 8, 3), np.uint8), step=40)
        ids.append(logger.experiment.id)
        close_loggers([logger])
        history = [
            {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            for record in finished_records(run.path)
            if record.HasField("history")
        ]
        assert history[0]["val/bound"] == "2.5"
        assert history[0]["trainer/global_step"] == "40"
        assert len(list(run.path.glob("wandb/offline-run-*/files/media/images/samples_*.png"))) == 1
        assert (run.path / "wandb" / "id.txt").read_text() == ids[-1]
        assert b"sesame" not in b"".join(f.read_bytes() for f in run.path.rglob("*") if f.is_file())
    assert ids[0] != ids[1]
    again = WandB(Run(tmp_path / "one"))
    assert again._stable_id() == ids[0]


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

    from noising.training.loggers import _wandb_mode

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


@pytest.mark.slow  # imports Lightning in a process of its own
def test_lightning_alone_imports_no_service() -> None:
    import subprocess

    code = "import sys, noising.training.loggers; print({'wandb', 'tensorboard'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
