"""One way for every number: to the loggers, metrics.csv and summary.json, with its meaning and its card."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noising.runs.declarations import Declaration, declaration, from_summary, measurements
from noising.runs.folder import Run
from noising.runs.results import Results
from tests.helpers import read_table


class Logger:
    """Notes the calls that a logger gets; it can do no more than Lightning's own."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_metrics(self, numbers: dict[str, float], step: int) -> None:
        self.calls.append(("numbers", dict(numbers), step))

    def finalize(self, status: str) -> None:
        self.calls.append((status,))


class Service(Logger):
    """One that can do all that is asked of any."""

    def __getattr__(self, method: str) -> Any:
        if not method.startswith(("declare", "record_", "close")):
            raise AttributeError(method)
        return lambda *facts: self.calls.append((method, *facts))


def test_a_number_reaches_every_reader(tmp_path: Path) -> None:
    plain, service = Logger(), Service()
    results = Results(Run(tmp_path), [plain, service])
    results.run.start({})
    loss = Declaration("training loss", better="lower")
    results.declare({"loss": loss})
    results.write("train/loss", torch.tensor(0.5), 10)
    results.write_all({"train/loss": 0.25, "test/bound": np.float64(3.5), "test/bound_mc_se": math.nan}, 20)
    results.write("test/fd", 2, 20, {"samples": 70, "sampler": {"steps": 5}})
    # a number with a card is a result, and is in the summary at once; the others when the run ends
    assert {name for name in results.run.summary if "/" in name} == {"test/fd"}
    results.close_loggers()
    results.finish("finished")
    assert results.run.summary == {
        "status": "finished",
        "declared": {"loss": {"title": "training loss", "unit": "", "better": "lower", "shown": True}},
        "cards": {"test/fd": {"samples": 70, "sampler": {"steps": 5}}},
        "train/loss": 0.25,
        "test/bound": 3.5,
        "test/bound_mc_se": None,
        "test/fd": 2,
    }
    assert results.run.metrics.read_text() == (
        "step,train/loss,test/bound,test/bound_mc_se,test/fd\n10,0.5,,,\n20,0.25,3.5,nan,2\n"
    )
    told = [call for call in plain.calls if call[0] == "numbers"]
    assert [(*call[1], call[2]) for call in told] == [
        ("train/loss", 10),
        ("train/loss", "test/bound", "test/bound_mc_se", 20),
        ("test/fd", 20),
    ]
    assert all(type(value) in (int, float) for call in told for value in call[1].values())
    assert next(call for call in service.calls if call[0] == "numbers") == ("numbers", {"train/loss": 0.5}, 10)
    assert plain.calls[-1] == ("success",)
    assert service.calls[-2:] == [("success",), ("close", False)]
    # each measurement is declared before it is first logged; its errors are not measurements
    assert [call for call in service.calls if call[0] == "declare"] == [
        ("declare", "train/loss", loss),
        ("declare", "test/bound", Declaration("bound")),
        ("declare", "test/fd", Declaration("fd")),
    ]
    cards = [call for call in service.calls if call[0] == "record_table"]
    rows = [("test/fd", "samples", 70), ("test/fd", "sampler.steps", 5)]
    assert cards == [("record_table", "cards", ("number", "entry", "value"), rows, 20)]


def test_pictures_go_to_the_loggers_that_take_them(tmp_path: Path) -> None:
    plain, service = Logger(), Service()
    results = Results(Run(tmp_path), [plain, service])
    results.write_image("samples", np.full((6, 4), 200, np.uint8), 7, "DDIM")
    results.write_chart("bound", ("x", "y", "line"), [(1, 2.0, "test")], "title", 7)
    (_, key, pixels, step, caption), chart = service.calls
    assert (key, pixels.shape, pixels.min(), step, caption) == ("samples", (6, 4, 3), 200, 7, "DDIM")
    assert chart == ("record_chart", "bound", ("x", "y", "line"), [(1, 2.0, "test")], "title", 7)
    assert plain.calls == []
    assert not results.run.metrics_record.exists()


def test_what_a_kill_leaves_is_whole_when_the_run_has_gone_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    killed = Results(run)
    run.start({})
    killed.write("train/loss", 0.5, 5)
    killed.write("train/loss", 0.4, 10)
    killed.write("val/fd", 9.0, 10)
    run.update({"ended": "at step 10 of 20"})
    again = Results(run)  # another process
    run.start({})
    again.resume_from(5)
    again.write("train/loss", 0.3, 10)
    again.finish("finished")
    assert json.loads(run.summary_file.read_text()) == {"status": "finished", "train/loss": 0.3}
    assert [row["train/loss"] for row in read_table(run.metrics)] == ["0.5", "0.3"]


@pytest.mark.parametrize("name", ["status", "cards", "declared", "ended", "error", "step"])
def test_reserved_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"must not be named {name}"):
        Results(Run(tmp_path)).write(name, 1.0, 1)


def test_a_declaration_is_of_a_name_in_any_split(tmp_path: Path) -> None:
    results = Results(Run(tmp_path))
    results.run.start({})
    results.declare({"fd": Declaration("FD", "squared", "lower")})
    written = results.run.summary_file.stat().st_mtime_ns
    results.declare({"fd": Declaration("FD", "squared", "lower")})  # nothing new
    assert results.run.summary_file.stat().st_mtime_ns == written
    results.declare({"kd": Declaration("KD", shown=False)})
    declared = from_summary(results.run.summary)
    assert declaration("val/fd", declared) == declaration("test/fd", declared) == Declaration("FD", "squared", "lower")
    assert declaration("test/kd", declared).shown is False
    assert declaration("mine/sharp_edges", declared) == Declaration("sharp edges")
    assert declaration("val/fd", declared).label == "FD  [squared]"
    # a later version may declare more
    newer = {"declared": {"fd": {"title": "FD", "unit": "", "better": None, "shown": True, "colour": "red"}}}
    assert from_summary(newer) == {"fd": Declaration("FD")}
    assert measurements(["fd", "fd_mc_se", "fd_baseline", "bound_low"]) == ["fd"]


def test_a_record_that_is_gone_or_damaged_in_the_course_of_a_run_ends_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    results = Results(run)
    assert results.rows() == []
    run.start({})
    results.write("train/loss", 0.5, 5)
    for file in (run.metrics_record, run.metrics, run.summary_file):
        file.unlink(missing_ok=True)
    results.write("train/loss", 0.4, 10)
    results.sync()
    with run.metrics_record.open("ab") as record:  # as a power cut may leave it
        record.write(b"\0\0\0\n[1]\n" + b'{"train/loss": 2}\n{"step": "x"}\n')
    results.write("test/bound", 3.0, 15, {"images": 7})
    results.finish("finished")
    assert [(row["step"], row["train/loss"]) for row in read_table(run.metrics)] == [("10", "0.4"), ("15", "")]
    assert (run.status, run.summary["train/loss"], run.summary["test/bound"]) == ("finished", 0.4, 3.0)
    results.resume_from(10)
    assert results.rows() == [{"step": 10, "train/loss": 0.4}]
