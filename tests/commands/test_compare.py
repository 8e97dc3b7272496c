"""`compare`: runs side by side, and a difference of two models that neither bound alone could show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from noising.commands.compare import measurement, verdict
from noising.runs.declarations import Declaration
from noising.runs.folder import Run
from tests.helpers import SMALL, Command, read_table, run_command


@pytest.fixture(scope="module")
def nudged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with its averaged weights a thousandth larger."""
    folder = tmp_path_factory.mktemp("nudged") / "run"
    shutil.copytree(trained, folder)
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    for weight in checkpoint["ema"]["weights"].values():
        weight.mul_(1.001)
    torch.save(checkpoint, path)
    return folder


def test_paired_sees_what_two_evaluations_cannot(trained: Path, nudged: Path, noising: Command, tmp_path: Path) -> None:
    outcome = noising("compare", str(nudged), str(trained), "paired=true", "bound.stderr=0.004", "hydra.run.dir=pair")
    assert outcome.code == 0, outcome.err
    run = Run(tmp_path / "pair")
    found, error = run.summary["test/difference"], run.summary["test/difference_mc_se"]
    assert found - 4 * error > 0 or found + 4 * error < 0  # seen
    assert f"{abs(found):.4f}" in outcome.out
    assert "is better on these images" in outcome.out

    # each by itself, to the same error: the intervals overlap, and their difference is as far as it may be
    apart = []
    for name, path in (("one", nudged), ("other", trained)):
        options = ("splits=[test]", "bound=stratified", "bound.times=64", "trainer.accelerator=cpu")
        assert noising("evaluate", f"checkpoint={path}", *options, f"hydra.run.dir={name}").code == 0
        apart.append(Run(tmp_path / name).summary)
    one, other = apart
    assert one["test/bound_low"] < other["test/bound_high"]
    assert other["test/bound_low"] < one["test/bound_high"]
    # the stratified draws are the same for both too, so that their difference is a second, independent witness
    assert one["test/bound"] - other["test/bound"] == pytest.approx(found, abs=0.3 * abs(found))
    card = run.summary["cards"]["test/difference"]
    assert (card["images"], card["timesteps"]) == (360, 1000)


def test_a_run_and_itself_are_the_same(trained: Path, noising: Command, tmp_path: Path) -> None:
    outcome = noising("compare", str(trained), str(trained), "paired=true", "hydra.run.dir=same")
    assert outcome.code == 0, outcome.err
    assert "neither is better" in outcome.out
    assert Run(tmp_path / "same").summary["test/difference"] == 0


def test_side_by_side(trained: Path, tmp_path: Path) -> None:
    options = [*SMALL, "trainer.max_steps=10", "schedule=linear", "bound.times=4", "hydra.run.dir=linear"]
    assert run_command("train", tmp_path, *options).code == 0
    outcome = run_command("compare", tmp_path, str(trained), "linear", "hydra.run.dir=table")
    assert outcome.code == 0, outcome.err
    for words in (
        "Cosine",
        "LinearBeta",
        "trainer.max_steps",
        "test/bound",
        "measured differently",
        "times, of test/bound",
        "not ranked",
    ):
        assert words in outcome.out, words
    assert "parameterization" not in outcome.out  # what is the same is not shown
    rows = read_table(tmp_path / "table" / "comparison.csv")
    assert [row["run"] for row in rows] == [str(trained), "linear"]
    assert float(rows[1]["test/bound"]) == Run(tmp_path / "linear").summary["test/bound"]
    assert rows[0]["option parameterization._target_"] == "noising.diffusion.parameterizations.Epsilon"


def row(value: float, error: float = 0.1, **card: object) -> dict[str, object]:
    return {
        "test/fd": value,
        "test/fd_mc_se": error,
        "test/coverage": value,
        **{f"card test/fd.{key.replace('__', '.')}": entry for key, entry in card.items()},
    }


DECLARED = {
    "fd": Declaration("FD", better="lower"),
    "coverage": Declaration("coverage", better="higher"),
    "seconds": Declaration("cost"),
}


def test_what_is_best_and_what_is_not_ranked() -> None:
    a, b = row(3.0, samples=360, sampler__steps=5), row(2.0, samples=360, sampler__steps=5)
    assert verdict("test/fd", [a, b], ["A", "B"], [], DECLARED) == "B"
    assert verdict("test/coverage", [a, b], ["A", "B"], [], DECLARED) == "A"
    near = row(2.2, samples=360, sampler__steps=5)
    assert verdict("test/fd", [a, near, b], ["A", "C", "B"], [], DECLARED) == "no significant difference"
    more = row(1.0, samples=720, sampler__steps=9)
    assert verdict("test/fd", [a, more], ["A", "D"], [], DECLARED) == "not ranked: samples and 1 more differ"
    assert verdict("test/fd", [a, more], ["A", "D"], ["sampler"], DECLARED) == "not ranked: samples differs"
    assert verdict("test/fd", [a, more], ["A", "D"], ["sampler", "samples"], DECLARED) == "D"
    assert verdict("test/fd", [a, {}], ["A", "E"], [], DECLARED) == ""  # not measured of one
    assert verdict("test/seconds", [{"test/seconds": 1.0}] * 2, ["A", "B"], [], DECLARED) == ""


def test_runs_of_earlier_versions_are_ranked(noising: Command, tmp_path: Path) -> None:
    """Their summaries declare nothing, and hold no numbers of the course of training."""
    for name, bound in (("one", 2.5), ("other", 2.9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
        numbers = {"test/bound": bound, "test/bound_mc_se": 0.01, "test/precision": bound / 10}
        (tmp_path / name / "summary.json").write_text(json.dumps({"status": "finished", "cards": {}, **numbers}))
    outcome = noising("compare", "one", "other", "hydra.run.dir=table")
    assert outcome.code == 0, outcome.err
    best = {
        cells[1].strip(): cells[-2].strip() for line in outcome.out.splitlines() if len(cells := line.split("│")) > 3
    }
    assert (best["test/bound"], best["test/precision"]) == ("one", "other")


def test_a_card_says_how_and_not_of_which_model() -> None:
    card = {
        "checkpoint": "a",
        "sha256": "b",
        "step": 9,
        "weights": {"decay": 0.99, "updates": 9},
        "reference": {"images": 360},
        "evaluations_per_image": 5,
    }
    assert measurement(card) == {"weights.decay": 0.99, "reference.images": 360}


def test_what_cannot_be_compared(trained: Path, noising: Command, tmp_path: Path) -> None:
    other = [*SMALL, "trainer.max_steps=5", "trainer.val_check_interval=5", "hydra.run.dir=short", "timesteps=50"]
    assert noising("train", *other).code == 0
    cases = {
        "runs must be two or more run folders": ("runs=[a]",),
        "nowhere holds no summary.json": (str(trained), "nowhere"),
        "of 1000 and of 50 steps": (str(trained), "short", "paired=true"),
        "vary must be a list": (str(trained), "short", "vary=null"),
        "vary=decodr: no card has an entry of this name; did you mean decoder?": (str(trained), "short", "vary=decodr"),
        "paired=true compares two runs, got 3": (str(trained), "short", "short", "paired=true"),
        "split must be": (str(trained), str(trained), "paired=true", "split=night"),
        "no run's folder or checkpoint file": (str(trained), "nowhere", "paired=true"),
    }
    for message, words in cases.items():
        outcome = noising("compare", *words, "hydra.run.dir=bad")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
        assert message in outcome.err
        assert not (tmp_path / "bad").exists()


def test_benchmark_counts_what_is_saved(trained: Path, noising: Command, tmp_path: Path) -> None:
    options = (
        "benchmark.stderr=0.2",
        "benchmark.repeats=2",
        "benchmark.full_sum_images=40",
        "benchmark.full_sum_repeats=2",
        "device=cpu",
        "hydra.run.dir=bench",
    )
    outcome = noising("benchmark", "bound", f"checkpoint={trained}", *options)
    assert outcome.code == 0, outcome.err
    summary = Run(tmp_path / "bench").summary
    for key in ("images_random", "whole_set"):
        card = summary["cards"][f"benchmark/{key}"]
        assert f"{card['evaluations']:,}" in outcome.out
        assert card["repeats"] == 2
    random, whole = (summary["cards"][f"benchmark/{key}"] for key in ("images_random", "whole_set"))
    assert random["full_sum_evaluations"] == pytest.approx(1000 * random["full_sum_images"])
    assert summary["benchmark/images_random"] == pytest.approx(random["full_sum_evaluations"] / random["evaluations"])
    assert 0 < random["stderr_reached"] < 0.2 * 1.4
    assert whole["images"] == 40
    equal = whole["evaluations"] * (whole["mc_se"] / whole["full_sum_stderr"]) ** 2
    assert summary["benchmark/whole_set"] == pytest.approx(40_000 / equal)
    refused = noising("benchmark", "bound", f"checkpoint={trained}", "benchmark.stderr=0.0001", "hydra.run.dir=no")
    assert refused.code == 2
    assert "use benchmark.stderr=" in refused.err


def test_benchmark_of_samplers_needs_no_checkpoint(noising: Command, tmp_path: Path) -> None:
    """What it measures is for people to read; that it compares all it names is tested."""
    options = ("batch_size=1", "benchmark.steps=3", "benchmark.repeats=2", "device=cpu", "hydra.run.dir=bench")
    outcome = noising("benchmark", "sampler", *options)
    assert outcome.code == 0, outcome.err
    summary = Run(tmp_path / "bench").summary
    for name in ("ancestral", "ddim", "dpmpp_2m", "heun"):
        card = summary["cards"][f"benchmark/sampler_{name}"]
        assert card["shape"] == [1, 3, 32, 32]
        assert 0 < card["ours_us"] < card["theirs_us"] + 1000
    refused = noising("benchmark", "bound", "hydra.run.dir=no")
    assert refused.code == 2
    assert "checkpoint has no value" in refused.err


def test_paired_takes_any_estimator(trained: Path, nudged: Path, noising: Command, tmp_path: Path) -> None:
    outcome = noising(
        "compare", str(nudged), str(trained), "paired=true", "bound=stratified", "bound.times=4", "hydra.run.dir=pair"
    )
    assert outcome.code == 0, outcome.err
    card = Run(tmp_path / "pair").summary["cards"]["test/difference"]
    assert (card["estimator"]["times"], card["evaluations_of_each"]) == (4, 4 * 360)
    assert "1,440 network evaluations" in outcome.err  # said before they are made, where there is no bar


def test_a_file_is_no_run(trained: Path, noising: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = noising("compare", "file", str(trained))
    assert outcome == (2, "", "error: runs: file holds no summary.json: it is not the folder of a run that has begun\n")
