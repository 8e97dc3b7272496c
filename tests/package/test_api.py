"""The Python door: nz.train and nz.load give a run whose images and bounds are those of the commands."""

from __future__ import annotations

import builtins
import io
import json
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import noising as nz
from noising.plots.images import ImageArray
from tests.helpers import SMALL, Command

CLASSES = ["label_dropout=0.1", "model.dropout=0.1"]


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> nz.Run:
    """A run with classes, trained from Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("conditional"))
        run = nz.train(*SMALL, *CLASSES, "trainer.max_steps=5", "callbacks.samples=null", "hydra.run.dir=run")
        return nz.load(run.folder.absolute())


def test_a_run_holds_what_the_command_left(trained: Path) -> None:
    run = nz.load(trained)
    assert run.folder == trained
    assert run.summary == json.loads((trained / "summary.json").read_text())
    table = run.metrics
    assert isinstance(table, pandas.DataFrame)
    assert table["step"].tolist() == sorted(table["step"])
    assert table["test/bound"].dropna().tolist() == [run.summary["test/bound"]]
    with Image.open(trained / "figures" / "learning_curves.png") as drawn:
        np.testing.assert_array_equal(np.asarray(run.figures["learning_curves"]), np.asarray(drawn))
    assert {"samples", "bound_by_step", "rate_distortion"} < set(run.figures)
    assert repr(run) == f"Run({trained}, finished, test/bound {run.summary['test/bound']:.4g})"


def test_rows_are_read_without_pandas(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = nz.load(trained).metrics
    original = builtins.__import__

    def without_pandas(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    rows = nz.load(trained).metrics
    expected = [{name: value for name, value in row.items() if value == value} for row in table.to_dict("records")]
    assert rows == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sampler": "ddim", "steps": 5, "seed": 3}, ["sampler=ddim", "sampler.steps=5", "seed=3"]),
        (
            {"sampler": "ddim", "steps": 4, "guidance": 2.5},
            ["sampler=ddim", "sampler.steps=4", "guidance=classifier_free", "guidance.scale=2.5"],
        ),
        ({"steps": 3, "class_label": 7}, ["sampler.steps=3", "class_label=7"]),
    ],
)
def test_images_are_those_of_the_command(
    conditional: nz.Run, given: dict[str, Any], words: list[str], noising: Command, tmp_path: Path
) -> None:
    images = conditional.sample(11, "batch_size=4", **given)
    drawn = noising("sample", f"checkpoint={conditional.folder}", "n=11", *words, "hydra.run.dir=drawn")
    assert drawn.code == 0, drawn.err
    with np.load(tmp_path / "drawn" / "samples.npz") as file:
        np.testing.assert_array_equal(images, file["arr_0"])
    assert images.classes == (0 if "class_label" in given else 10)


def test_options_of_the_command_can_be_given(trained: Path) -> None:
    run = nz.load(trained)
    karras, uniform = (run.sample(2, f"grid={grid}", sampler="heun", steps=5) for grid in ("karras", "uniform"))
    assert (karras != uniform).any()
    expected = run.sample(2, sampler="ddim", steps=5)
    for given in ("noising.diffusion.samplers.DDIM", "noising.DDIM"):
        np.testing.assert_array_equal(run.sample(2, sampler=given, steps=5), expected)
    np.testing.assert_array_equal(run.sample(2, sampler=nz.DDIM(steps=5)), expected)


@pytest.mark.parametrize("words", [[], ["bound=stratified", "bound.times=8"]])
def test_a_bound_is_that_of_the_command(trained: Path, words: list[str], noising: Command, tmp_path: Path) -> None:
    estimate = nz.load(trained).bound("val", *words, stderr=None if words else 0.3)
    found = estimate.numbers()
    more = words or ["bound.stderr=0.3"]
    done = noising("evaluate", f"checkpoint={trained}", "splits=[val]", *more, "hydra.run.dir=out")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["bound"] == pytest.approx(summary["val/bound"], rel=1e-6)
    assert repr(estimate).startswith(f"{found['bound']:.4f} bits/dim ± {found['bound_mc_se']:.4f} (times and noise) ± ")
    assert found["bound_mc_se"] == pytest.approx(summary["val/bound_mc_se"], rel=1e-4)


def test_an_evaluation_is_the_command(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = nz.load(trained).evaluate("bound=stratified", "bound.times=8", "splits=[test]")
    assert result.summary["status"] == "finished"
    assert result.summary["test/bound"] == pytest.approx(nz.load(trained).summary["test/bound"], rel=1e-6)
    assert result.folder.relative_to(tmp_path).parts[0] == "evaluations"
    assert "bound_by_step" in result.figures


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda run: run.sample(0), "n must be a whole number from 1"),
        (lambda run: run.sample(2, sampler="ddm"), "sampler=ddm: no such choice; did you mean ddim?"),
        (lambda run: run.sample(2, guidance=2.0), "guidance=classifier_free needs a model that was trained with and "),
        (lambda run: run.sample(2, class_label=1), "class_label=1: the model was trained without classes"),
        (lambda run: run.sample(2, "step=3"), "step: no such option"),
        (lambda run: run.sample(2, "devices=2"), "devices=2: this call has no option devices; only"),
        (lambda run: run.sample(2, "n=3"), "n=3: give it as the separate argument n=..."),
        (lambda run: run.sample(2, "seed=3"), "seed=3: give it as the separate argument seed=..."),
        (
            lambda run: run.sample(2, "guidance=autoguidance", guidance=2.0),
            "guidance=autoguidance: give it as the",
        ),
        (lambda run: run.sample(2, "hydra.run.dir=x"), "hydra.run.dir=x: this call has no option hydra.run.dir"),
        (lambda run: run.sample(2, sampler=nz.DDIM), "sampler: expected sampler='ddim', steps=50"),
        (lambda run: run.sample(2, sampler=nz.DDIM(3), steps=3), "sampler: expected sampler='ddim', steps=50"),
        (lambda run: run.sample(2, device="tpu"), "device=tpu: expected auto, cpu, cuda, cuda:1 or mps"),
        (lambda run: run.bound("tests"), "split=tests: expected one of test, train, val as the first argument"),
        (lambda run: run.bound("val", "splits=[test]"), "splits=[test]: expected an option of the bound"),
        (lambda run: run.evaluate("checkpoint=x"), "checkpoint=x: this call has no option checkpoint"),
        (lambda run: nz.load(run.folder, allow=3), "allow=3: expected the name of a module"),
        (lambda run: nz.train(config_dir=3), "config_dir=3: expected a folder's path"),
        (lambda run: nz.train("model._target_=__main__.Net"), "model: a class defined in a script or a notebook"),
        (lambda run: run.bound(stderr=-1), "bound: stderr must lie between"),
        (lambda run: run.evaluate("bound=exat"), "bound=exat: no such choice; did you mean exact?"),
    ],
)
def test_mistakes_are_one_line(trained: Path, call: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    with pytest.raises(nz.UsageError) as raised:
        call(nz.load(trained))
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_drawing_leaves_the_generators_as_they_were(conditional: nz.Run) -> None:
    run = nz.load(conditional.path)  # whose network is not built yet
    states = random.getstate(), torch.get_rng_state().tolist()
    run.sample(2, steps=2)
    run.bound("val", "bound=stratified", "bound.times=4")
    assert (random.getstate(), torch.get_rng_state().tolist()) == states


def test_a_run_is_where_it_was_whatever_becomes_of_the_folder_of_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public name is a class as any other, and the words of one's own call need no leave to be loaded again."""
    monkeypatch.chdir(tmp_path)
    with torch.inference_mode():
        torch.set_default_dtype(torch.float64)
        try:
            words = [
                "schedule._target_=noising.Cosine",
                "metrics._target_=torchmetrics.MeanMetric",
                "callbacks.quality=null",
            ]
            run = nz.train(*SMALL[:-1], "trainer.max_steps=2", "callbacks.samples=null", *words)
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.is_inference_mode_enabled()
    monkeypatch.chdir("/")
    assert run.summary["status"] == "finished"
    assert run.evaluate("bound=stratified", "bound.times=4", f"hydra.run.dir={tmp_path / 'out'}").summary
    with pytest.raises(nz.ConfigError, match="add allow=torchmetrics"):
        nz.load(run.folder)
    assert nz.load(run.folder, allow=["torchmetrics"]).step == 2


def test_only_the_main_thread_trains_and_any_draws(trained: Path) -> None:
    run, found = nz.load(trained), dict[int, Any]()

    def work(seed: int) -> None:
        found[seed] = run.sample(2, steps=2, seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        np.testing.assert_array_equal(found[seed], run.sample(2, steps=2, seed=seed))
    raised: list[Exception] = []

    def train() -> None:
        try:
            nz.train()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [nz.UsageError]
    assert "must run in the main thread" in str(raised[0])


def test_a_checkpoint_alone_is_a_run_without_results(conditional: nz.Run, tmp_path: Path) -> None:
    shutil.copy(conditional.path, tmp_path / "some.ckpt")
    run = nz.load(tmp_path / "some.ckpt")
    assert (run.step, run.summary, run.figures) == (5, {}, {})
    np.testing.assert_array_equal(run.sample(2, steps=2), conditional.sample(2, steps=2))
    with pytest.raises(nz.ConfigError, match=r"holds no metrics\.csv"):
        run.metrics  # noqa: B018


def test_images_are_shown_as_a_grid_and_its_parts_as_well() -> None:
    images = ImageArray(np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4, 1))
    shown = images._repr_png_()
    assert shown is not None
    with Image.open(io.BytesIO(shown)) as picture:
        pixels = np.asarray(picture)
    side = (2 * 5 + 1, 3 * 5 + 1)  # 2 x 3 images of 4 pixels, with gaps of 1
    factor = pixels.shape[1] // side[1]
    assert pixels.shape == (side[0] * factor, side[1] * factor)
    np.testing.assert_array_equal(pixels[::factor, ::factor][1:5, 1:5], images[0, :, :, 0])
    assert images[:2]._repr_png_() is not None
    assert images[0]._repr_png_() is None
    assert repr(images[:2]) == "ImageArray(2 images of 4x4x1, uint8)"
    assert repr(images[0, :1, :2]) == "ImageArray([[[0],\n             [1]]], dtype=uint8)"
    assert images.mean(axis=0)._repr_png_() is None
    assert (images / 2)._repr_png_() is None
    assert np.asarray(images).sum() == images.sum() == 80 * 79 // 2
