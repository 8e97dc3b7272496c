"""convert: EDM2's files become runs, with their uncertainty, and runs of its network such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from noising.models.edm2 import EDM2UNet
from noising.trained import load
from tests.commands.helpers import images
from tests.helpers import Command
from tests.interchange.helpers import FOLDER, fixture

EDM = ("schedule=log_linear_sigma", "parameterization=karras", "noise_label=quarter_log_sigma", "file.head_width=8")


@pytest.mark.parametrize(
    ("name", "classes", "facts"), [("edm2_class", 6, []), ("edm2_uncond_clip", 0, ["file.clip_features=2"])]
)
def test_a_file_becomes_a_run_and_the_run_the_file(
    name: str, classes: int, facts: list[str], noising: Command, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    given, file = fixture(name), FOLDER / f"{name}.safetensors"
    data = images(tmp_path, given.side, classes)
    outcome = noising("convert", f"weights={file}", f"check={file}", *data, *EDM, *facts, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [row for row in summary["converted"]["checks"] if row["check"].startswith("outputs of")]
    assert [float(row["measured"]) < 2e-5 for row in rows] == [True]
    run = load(tmp_path / "run")
    network: Any = run.denoiser.model
    assert isinstance(network, EDM2UNet)
    with torch.no_grad():
        found = network.log_variance(given.inputs["F_c_noise"])
    torch.testing.assert_close(found, given.outputs["logvar"].flatten(), rtol=1e-5, atol=1e-6)
    outcome = noising("convert", "checkpoint=run", "to=edm2", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == given.weights.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in given.weights.items())


def test_another_limit_of_the_features_is_not_written(noising: Command, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = FOLDER / "edm2_uncond_clip.safetensors"
    words = (f"weights={file}", f"check={file}", *images(tmp_path, 8, 0), *EDM, "unchecked=true")
    outcome = noising("convert", *words, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "nothing is written, since a check does not hold" in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()
