"""convert: VDM's arrays become a run with the schedule that they hold, and a run's weights and schedule such arrays."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from noising.diffusion.schedules import LearnedLine
from noising.trained import load
from tests.commands.helpers import images
from tests.helpers import Command
from tests.interchange.helpers import FOLDER, fixture

CHECK = f"check={FOLDER / 'vdm'}.safetensors"


def archive(path: Path, tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Write tensors as an .npz file; returns the arrays."""
    arrays: dict[str, Any] = {prefix + name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(path, **arrays)
    return arrays


@pytest.fixture
def converted(noising: Command, tmp_path: Path) -> Any:
    """converted(file, *options): the outcome for a file, on images of the fixture's size, and in VDM's theory."""
    (tmp_path / "images").mkdir()
    given = images(tmp_path, 8, 0)

    def convert(file: str, *options: str, run: str = "run") -> Any:
        # of the recipe's parts but for its data; the file is random and predicts nothing
        theory = [option for option in given if option != "data=image_folder"]
        recipe = ["known=vdm_cifar10", "data=image_folder", "~data.flip", "parameters=null", "unchecked=true"]
        return noising("convert", f"weights={file}", *recipe, *theory, f"hydra.run.dir={run}", *options)

    return convert


def test_arrays_become_a_run_with_their_schedule_and_come_back_to_the_bit(
    converted: Any, noising: Command, tmp_path: Path
) -> None:
    weights = fixture("vdm").weights
    given = archive(tmp_path / "vdm.npz", {**weights, "gamma/w": -weights["gamma/w"]})  # |w| is meant
    outcome = converted("vdm.npz", CHECK)
    assert outcome.code == 0, outcome.err
    checks = json.loads((tmp_path / "run" / "summary.json").read_text())["converted"]["checks"]
    (difference,) = (row["measured"] for row in checks if row["check"].startswith("outputs of"))
    assert float(difference) < 2e-5
    held = "the file's schedule, LearnedLine: λ at t = 0 and t = 1"
    assert [row["measured"] for row in checks if row["check"] == held] == ["10.9922 and -1.4688"]
    run = load(tmp_path / "run")
    schedule = run.denoiser.schedule
    assert isinstance(schedule, LearnedLine)
    assert [schedule.offset.item(), schedule.slope.item()] == [given["gamma/b"].item(), given["gamma/w"].item()]
    outcome = noising("convert", "checkpoint=run", "to=vdm", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    with np.load(tmp_path / "out" / "model.npz", allow_pickle=False) as back:
        assert set(back.files) == given.keys()
        assert all(np.array_equal(back[name], array) for name, array in given.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["schedule"]["image_scale"] == 255 / 256


def test_a_flattened_checkpoint_gives_its_averages_or_its_raw_weights(converted: Any, tmp_path: Path) -> None:
    weights = fixture("vdm").weights
    averages = {name: tensor + 1 for name, tensor in weights.items()}
    arrays = archive(tmp_path / "only.npz", weights, "params/")
    both = {**arrays, **archive(tmp_path / "none.npz", averages, "ema_params/"), "step": np.array(7)}
    both |= {"opt_state/0/count": np.array(7)}
    np.savez(tmp_path / "both.npz", **both)
    for file, averaged, entry, shift in (
        ("both.npz", "true", "ema_params", 1.0),
        ("both.npz", "false", "params", 0.0),
        ("only.npz", "true", "params", 0.0),
    ):
        outcome = converted(file, f"averaged={averaged}", run=f"{file}{averaged}")
        assert outcome.code == 0, outcome.err
        run = load(tmp_path / f"{file}{averaged}")
        assert torch.equal(run.denoiser.model.first.bias, weights["score_model/conv_in/bias"] + shift)
        assert run.source["converted"]["entry"] == entry


class Evil:
    """What runs code when it is opened."""

    def __reduce__(self) -> Any:
        return (Path("opened").touch, ())


def test_archives_that_are_no_weights_are_refused_in_a_line(converted: Any, tmp_path: Path) -> None:
    weights = fixture("vdm").weights
    arrays = archive(tmp_path / "whole.npz", weights)
    np.savez(tmp_path / "evil.npz", a=np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:5000])
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "words.npz", **{**arrays, "a": np.array("b")})
    np.savez(tmp_path / "half.npz", **{"gamma/b": arrays["gamma/b"]})
    np.savez(tmp_path / "curve.npz", **{name: array for name, array in arrays.items() if name != "gamma/w"})
    changed = bytearray((tmp_path / "whole.npz").read_bytes())
    changed[len(changed) // 2] ^= 255
    (tmp_path / "changed.npz").write_bytes(changed)
    for file, message in (
        ("evil.npz", "it is damaged, or no .npz file of arrays of numbers (code in it was not run)"),
        ("pickle.npz", "it is damaged, or no .npz file of arrays of numbers"),
        ("cut.npz", "it is damaged, or no .npz file"),
        ("changed.npz", "it is damaged, or no .npz file"),
        ("empty.npz", "it is damaged, or no .npz file"),
        ("words.npz", "its a holds no numbers that numpy knows: store it as float32"),
        ("half.npz", "its 1 tensors (gamma/b, ...) are in none of the layouts"),
        ("curve.npz", "gamma has b: expected b and w, or l1, l2 and l3"),
        ("none.npz", "there is no such file or folder"),
    ):
        outcome = converted(file)
        assert outcome.code == 2, (file, outcome.err)
        assert message in outcome.err, outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "opened").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_theory_is_not_taken_for_vdms(converted: Any) -> None:
    """The file's schedule is learned, with its ends: the objective and the decoder must be able to train it."""
    np_file = str(FOLDER / "vdm.safetensors")
    outcome = converted(np_file, "objective=regression")
    assert "schedule: LearnedLine is learned, but objective Regression cannot train it" in outcome.err
    outcome = converted(np_file, CHECK, "noise_label.log_snr_max=20")  # another label than VDM's
    assert outcome.code == 2
    assert "nothing is written, since a check does not hold" in outcome.err


def test_a_file_without_a_schedule_takes_the_runs_and_other_images_are_warned_of(
    converted: Any, noising: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {name: tensor for name, tensor in fixture("vdm").weights.items() if "gamma/" not in name}
    archive(tmp_path / "fixed.npz", weights)
    outcome = converted("fixed.npz", "schedule=linear_log_snr", "~schedule.image_scale")
    assert outcome.code == 0, outcome.err
    assert type(load(tmp_path / "run").denoiser.schedule).__name__ == "LinearLogSNR"
    outcome = noising("convert", "checkpoint=run", "to=vdm", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    warning = "to=vdm: its code scales images by 0.996094, and this network was trained with 1"
    assert warning in outcome.err + outcome.out + caplog.text
    with np.load(tmp_path / "out" / "model.npz", allow_pickle=False) as back:
        assert set(back.files) == weights.keys()
