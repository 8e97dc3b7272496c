"""`sample` from the command line: the same images however the work is shared out or broken off."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from noising.commands import sample_jobs
from noising.commands.sample_jobs import SampleJob
from noising.runs.folder import Run
from noising.trained import load
from tests.helpers import FORKSERVER, SMALL, Command, run_command

FEW = ["sampler=ancestral", "sampler.steps=5", "n=5", "device=cpu"]


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run of a model that is told the class."""
    folder = tmp_path_factory.mktemp("conditional")
    outcome = run_command("train", folder, *SMALL, "experiment=class_conditional", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return folder / "run"


def images_of(folder: Path) -> np.ndarray:
    with np.load(folder / "samples.npz") as file:
        images: np.ndarray = file["arr_0"]
    return images


def test_images_are_the_same_at_any_batch_size_and_on_any_number_of_devices(
    trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several devices get processes that are given what spawned ones are, from a server that has imported it all."""
    monkeypatch.setattr(sample_jobs, "multiprocessing", SimpleNamespace(get_context=lambda method: FORKSERVER))
    common = ("sample", f"checkpoint={trained}", *FEW)
    for name, *shared in (("a", "batch_size=5"), ("b", "batch_size=2"), ("c", "batch_size=2", "devices=2")):
        outcome = noising(*common, *shared, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    a, b, c = (images_of(tmp_path / name) for name in "abc")
    assert a.shape == (5, 8, 8, 1)
    assert a.dtype == np.uint8
    assert len(np.unique(a.reshape(5, -1), axis=0)) == 5
    np.testing.assert_array_equal(b, c)  # equal batch shapes: bitwise
    np.testing.assert_array_equal(a, b)
    card = Run(tmp_path / "c").summary["cards"]["sample/images"]
    assert card["sampler"]["steps"] == card["evaluations_per_image"] == 5
    assert card["sampler"]["clip"] == 1
    assert card["seed"] == 0
    assert len(card["sha256"]) == 64


@pytest.mark.usefixtures("figures")
def test_what_it_leaves(trained: Path, noising: Command, tmp_path: Path) -> None:
    outcome = noising("sample", f"checkpoint={trained}", *FEW, "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "out"
    assert Run(folder).status == "finished"
    assert not (folder / "shards").exists()
    for picture in ("samples.png", "path.png", "reverse_process.gif"):
        with Image.open(folder / picture) as image:
            assert np.asarray(image.convert("L")).std() > 10, picture
    with Image.open(folder / "reverse_process.gif") as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]
    outcome = noising("sample", f"checkpoint={trained}", *FEW, "format=png", "hydra.run.dir=single")
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "single" / "samples.npz").exists()
    for number, image in enumerate(images_of(folder)):
        with Image.open(tmp_path / "single" / "images" / f"{number:06d}.png") as single:
            np.testing.assert_array_equal(np.asarray(single), image[:, :, 0])


def test_it_goes_on_where_it_was_broken_off(
    trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("sample", f"checkpoint={trained}", *FEW, "batch_size=2")
    assert noising(*common, "hydra.run.dir=whole").code == 0
    drawn: list[range] = []
    draw = SampleJob.draw

    def until_the_third(self: SampleJob, batch: range, *args: object) -> torch.Tensor:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(batch)
        return draw(self, batch, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SampleJob, "draw", until_the_third)
    assert noising(*common, "hydra.run.dir=broken").code == 130
    assert Run(tmp_path / "broken").status == "interrupted"
    assert not (tmp_path / "broken" / "samples.npz").exists()

    def counted(self: SampleJob, batch: range, *args: object) -> torch.Tensor:
        drawn.append(batch)
        return draw(self, batch, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SampleJob, "draw", counted)
    outcome = noising("sample", "resume=broken", "sampler.eta=1", f"checkpoint={trained}", *FEW, "sampler=ddim")
    assert outcome.code == 2
    assert "broken was started with other options: sampler." in outcome.err
    outcome = noising("sample", "resume=broken")
    assert outcome.code == 0, outcome.err
    assert drawn == [range(0, 2), range(2, 4), range(4, 5)]
    np.testing.assert_array_equal(images_of(tmp_path / "broken"), images_of(tmp_path / "whole"))
    before = (tmp_path / "broken" / "samples.npz").stat().st_mtime_ns
    outcome = noising("sample", "resume=broken")
    assert outcome.code == 0
    assert "is finished" in outcome.out
    assert (tmp_path / "broken" / "samples.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        (["format=jpeg"], "format must be one of npz, png"),
        (["n=0"], "n must be a whole number"),
        (["batch_size=half"], "batch_size must be a whole number"),
        (["devices=0"], "devices must be a whole number"),
        (["device=cuda:77"], "device=cuda:77: "),
        (["device=cuda:77"], "use device=cpu, or auto"),
        (["class_label=3"], "class_label=3: the model was trained without classes"),
        (["guidance=classifier_free"], "was trained with no label; train with label_dropout=0.1"),
        (["guidance=autoguidance"], "guidance.guide.checkpoint"),
        (["guidance=autoguidance", "guidance.guide.checkpoint=nowhere"], "guidance.guide.checkpoint=nowhere: no run"),
        (["sampler.steps=0"], "steps"),
        (["checkpoint=nowhere"], "checkpoint=nowhere"),
    ],
)
def test_a_bad_option_is_one_line_before_any_work(
    options: list[str], blamed: str, trained: Path, noising: Command, tmp_path: Path
) -> None:
    outcome = noising("sample", f"checkpoint={trained}", *FEW, *options)
    assert outcome.code == 2
    assert blamed in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("samples/*/*/*.npz"))


def test_classes_are_asked_for(conditional: Path, noising: Command, tmp_path: Path) -> None:
    """In turn, or one; and guidance moves the images, but not at scale 1."""
    common = ("sample", f"checkpoint={conditional}", *FEW, "n=20")
    guided = "guidance=classifier_free"
    for name, *options in (
        ("turn",),
        ("three", "class_label=3"),
        ("one", guided, "guidance.scale=1"),
        ("four", guided, "guidance.scale=4"),
        ("late", guided, "guidance.scale=4", "guidance.interval=[0,2]"),
    ):
        outcome = noising(*common, *options, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    turn, three, one, four, late = (images_of(tmp_path / name) for name in ("turn", "three", "one", "four", "late"))
    with np.load(tmp_path / "turn" / "samples.npz") as turned, np.load(tmp_path / "three" / "samples.npz") as threes:
        assert (turned["arr_1"].tolist(), threes["arr_1"].tolist()) == ([*range(10), *range(10)], 20 * [3])
    np.testing.assert_array_equal(turn[3::10], three[3::10])
    assert (turn[:3] != three[:3]).any()
    np.testing.assert_array_equal(turn, one)
    assert (turn != four).any()
    assert (late != four).any()
    cards = {name: Run(tmp_path / name).summary["cards"]["sample/images"] for name in ("turn", "three", "four", "late")}
    assert cards["turn"]["class_label"] == "image i is asked for class i mod 10"
    assert cards["three"]["class_label"] == 3
    assert cards["four"]["evaluations_per_image"] == 10
    assert 5 < cards["late"]["evaluations_per_image"] < 10
    outcome = noising(*common, guided, "guidance.interval=[50,60]")
    assert outcome.code == 2
    assert "guidance.interval=[50.0, 60.0] holds none of the 5 steps, whose λ go from -" in outcome.err
    outcome = noising(*common, "class_label=10")
    assert outcome.code == 2
    assert "has classes 0 to 9" in outcome.err


def test_what_is_done_is_not_passed_off_as_something_else(trained: Path, noising: Command, tmp_path: Path) -> None:
    common = ("sample", f"checkpoint={trained}", *FEW)
    assert noising(*common, "hydra.run.dir=done").code == 0
    again = noising(*common, "hydra.run.dir=done", "resume=true")
    assert (again.code, "is finished" in again.out) == (0, True)
    before = (tmp_path / "done" / ".hydra" / "overrides.yaml").read_text()
    refused = noising(*common, "sampler.eta=1", "sampler=ddim", "resume=done")
    assert refused.code == 2
    assert "done was started with other options" in refused.err
    assert "go on with resume=done alone" in refused.err
    assert (tmp_path / "done" / ".hydra" / "overrides.yaml").read_text() == before
    assert noising("sample", "resume=done").code == 0


def test_a_damaged_shard_is_drawn_again(
    trained: Path, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("sample", f"checkpoint={trained}", *FEW, "batch_size=2")
    assert noising(*common, "hydra.run.dir=whole").code == 0
    draw = SampleJob.draw

    def until_the_last(self: SampleJob, batch: range, *args: object) -> torch.Tensor:
        if batch.start == 4:
            raise KeyboardInterrupt
        return draw(self, batch, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SampleJob, "draw", until_the_last)
        assert noising(*common, "hydra.run.dir=part").code == 130
    shard = tmp_path / "part" / "shards" / "000000002.npz"
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    assert noising(*common, "hydra.run.dir=part", "resume=true").code == 0
    assert np.array_equal(images_of(tmp_path / "part"), images_of(tmp_path / "whole"))


def test_one_process_at_a_time(trained: Path, noising: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        outcome = noising("sample", f"checkpoint={trained}", *FEW, "hydra.run.dir=run", "resume=true")
    assert outcome.code == 2
    assert "run is being written by another process" in outcome.err
    assert noising("sample", f"checkpoint={trained}", *FEW, "hydra.run.dir=run", "resume=true").code == 0
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_guide_that_is_told_no_class_guides_one_that_is(
    conditional: Path, trained: Path, noising: Command, tmp_path: Path
) -> None:
    options = ["guidance=autoguidance", f"guidance.guide.checkpoint={trained}", "guidance.scale=3"]
    for name, checkpoint in (("told", conditional), ("untold", trained)):
        outcome = noising("sample", f"checkpoint={checkpoint}", *FEW, *options, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    card = Run(tmp_path / "told").summary["cards"]["sample/images"]
    assert card["guide"]["sha256"] == hashlib.sha256(Run(trained).last_checkpoint.read_bytes()).hexdigest()
    plain = noising("sample", f"checkpoint={conditional}", *FEW, "hydra.run.dir=plain")
    assert plain.code == 0
    assert not np.array_equal(images_of(tmp_path / "told"), images_of(tmp_path / "plain"))


def test_a_lesser_version_guides(conditional: Path, noising: Command, tmp_path: Path) -> None:
    lesser = conditional / "checkpoints" / "best.ckpt"
    options = ["guidance=autoguidance", f"guidance.guide.checkpoint={lesser}", "guidance.scale=3"]
    outcome = noising("sample", f"checkpoint={conditional}", *FEW, *options, "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    card = Run(tmp_path / "out").summary["cards"]["sample/images"]
    assert card["evaluations_per_image"] == 10
    assert card["guidance"]["guide"]["checkpoint"] == str(lesser)


def test_the_bound_of_a_model_with_classes_is_told_them(conditional: Path) -> None:
    run = load(conditional)
    assert run.classes == 10
    terms, images = run.bound_terms(clip=None), run.image_set("test", size=30)
    x, told = images.fetch(torch.arange(30))
    assert told is not None
    label = run.data.test.labels
    assert label is not None
    assert torch.equal(told, label[:30])
    step, noise = torch.full((30,), 200), torch.zeros_like(x)
    right, wrong = (terms.at(x, step, noise, class_label).nats for class_label in (told, (told + 1) % 10))
    assert not torch.equal(right, wrong)
    assert json.loads((conditional / "summary.json").read_text())["cards"]["test/bound"]["classes"] == 10
