"""The record through crashes and resumes, TensorBoard's files, and the `logger` options."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import Logger

from noising.config.instantiate import make
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.training.loggers import CSVMetrics, TensorBoard, WandB
from tests.helpers import CONF, tensorboard_events, tensorboard_scalars, tensorboard_texts


def text(run: Run) -> str:
    return run.metrics.read_text()


def test_calls_at_one_step_are_one_row_and_new_names_widen_the_table(tmp_path: Path) -> None:
    run = Run(tmp_path)
    csv = CSVMetrics(Results(run))
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
    csv = CSVMetrics(Results(run))
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
    csv = CSVMetrics(Results(whole))
    log(csv, 1, 14)
    csv.finalize("success")
    csv = CSVMetrics(Results(broken))
    log(csv, 1, 11)  # killed
    if earlier:
        csv.finalize("failed")
        broken.metrics_record.unlink()
    with (broken.metrics if earlier else broken.metrics_record).open("a") as file:
        file.write("11,0.090" if torn and earlier else torn)
    csv = CSVMetrics(Results(broken))
    csv.results.resume_from(resumed)
    assert csv.results.rows() == CSVMetrics(Results(whole)).results.rows()[:resumed]
    csv.log_metrics({"train/loss": 1 / resumed}, step=resumed)  # what the step itself logs again is no second row
    log(csv, resumed + 1, 14)
    csv.finalize("success")
    assert text(broken) == text(whole)


def test_a_line_that_a_kill_has_cut_off_is_dropped_without_a_resume_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    CSVMetrics(Results(run)).log_metrics({"a": 1.0}, step=1)
    with run.metrics_record.open("a") as file:
        file.write('{"step": 2, "a"')
    assert CSVMetrics(Results(run)).results.rows() == [{"step": 1, "a": 1.0}]
    csv = CSVMetrics(Results(run))
    csv.log_metrics({"a": 3.0}, step=3)
    csv.finalize("success")
    assert text(run) == "step,a\n1,1.0\n3,3.0\n"


def test_resume_without_a_record_begins_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    csv = CSVMetrics(Results(run))
    csv.results.resume_from(5)
    csv.log_metrics({"a": 1.0}, step=6)
    csv.finalize("success")
    assert text(run) == "step,a\n6,1.0\n"


def test_only_the_record_gets_what_a_callback_logs_and_nothing_of_lightnings_own(tmp_path: Path) -> None:
    class Other:
        def log_metrics(self, numbers: object, step: int) -> None:
            raise AssertionError("Lightning gives it the same numbers")

    run = Run(tmp_path)
    csv = CSVMetrics(Results(run, [Other()]))
    csv.log_metrics({"epoch": 0, "step": 3.0}, step=3)
    assert not run.metrics_record.exists()
    csv.log_metrics({"mine": np.float32(0.5), "epoch": 0}, step=4)
    assert run.metrics_record.read_text() == '{"step": 4, "mine": 0.5}\n'


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ([], ["csv"]),
        (["logger=wandb"], ["wandb"]),
        (["logger=[csv,wandb]"], ["csv", "wandb"]),
        (["logger=[tensorboard,wandb]"], ["tensorboard", "wandb"]),
        (["logger=wandb", "logger.wandb.project=mine", "logger.wandb.artifacts=[samples]"], ["wandb"]),
    ],
)
def test_every_choice_of_loggers_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: list[str], names: list[str]
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    (tmp_path / "config.yaml").write_text("defaults: [{logger: [csv]}, _self_]\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("config", overrides=[f"hydra.searchpath=[file://{CONF}]", *choice])
    assert list(cfg.logger) == names
    classes = {"csv": CSVMetrics, "tensorboard": TensorBoard, "wandb": WandB}
    run = Run(tmp_path / "run")
    facts = {"run": run, "config": {"seed": 1}, "command": "train", "results": Results(run)}
    for name, node in cfg.logger.items():
        logger = make(node, f"logger.{name}", Logger, **facts)
        assert type(logger) is classes[name]
        if name == "wandb":
            assert logger.name == ("mine" if len(choice) == 3 else "noising")
    assert not run.path.exists()


def test_tensorboard_has_numbers_pictures_with_captions_tables_charts_and_the_config(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config = {"model": {"width": 8}, "api_key": "sesame", "tags": ["ü"]}
    board = TensorBoard(run, config)
    results = Results(run, [board])
    results.write("val/bound", 2.5, 40)
    board.finalize("success")  # as Lightning does after a fit; then come figures
    results.write("val/bound", 2.25, 50)
    results.write_image("samples", np.full((6, 4), 200, np.uint8), 50, "9 samples")
    results.write_table("cards", ("number", "value"), [("val/bound", "a|b"), ("val/fd", None)], 50)
    results.write_chart(
        "by_step", ("t", "bits", "part"), [(2, 0.5, "prior"), (1, 0.25, "prior"), (1, 4.0, "rest")], "The bound", 50
    )
    results.write_chart("by_noise", ("λ", "bits", "part"), [(0.5, 2.0, "all"), (-1.5, 1.0, "all")], "The bound", 50)
    results.close_loggers()

    assert tensorboard_scalars(tmp_path) == {
        "val/bound": [(40, 2.5), (50, 2.25)],
        "by_step/prior": [(1, 0.25), (2, 0.5)],
        "by_step/rest": [(1, 4.0)],
        "by_noise/all": [(0, 1.0), (1, 2.0)],
    }
    (image,) = tensorboard_events(tmp_path).Images("samples")
    assert (image.step, image.height, image.width) == (50, 6, 4)
    texts = tensorboard_texts(tmp_path)
    ((step, written),) = texts.pop("config")
    lines = written.splitlines()
    assert (step, lines[0], lines[-1]) == (0, "```yaml", "```")
    assert yaml.safe_load("\n".join(lines[1:-1])) == {**config, "api_key": "***"}
    assert texts == {
        "samples": [(50, "9 samples")],
        "cards": [(50, "| number | value |\n| --- | --- |\n| val/bound | a\\|b |\n| val/fd | None |")],
        "by_step": [(50, "The bound: bits by t")],
        "by_noise": [(50, "The bound: bits by λ, in order, from -1.5 to 0.5")],
    }


@pytest.mark.slow  # imports Lightning in a process of its own
def test_lightning_alone_imports_no_service() -> None:
    code = "import sys, noising.training.loggers; print({'wandb', 'tensorboard'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
