"""convert: JiT's files become runs, and runs of its network such files; either of a training's averages is taken."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from noising.commands.foreign_weights import read_weights
from noising.errors import ConfigError
from noising.models.jit import JiT
from noising.trained import load
from tests.commands.helpers import images
from tests.helpers import Command
from tests.interchange.helpers import FOLDER, fixture

NAME = "jit_class_incontext"
THEORY = ("schedule=rectified_flow", "parameterization=clean_image", "noise_label=scaled_time", "label_dropout=0.1")
THEORY += ("+noise_label.at_image=1", "+noise_label.at_noise=0")


def test_a_file_becomes_a_run_and_the_run_the_file(noising: Command, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    given, file = fixture(NAME), FOLDER / f"{NAME}.safetensors"
    words = (*images(tmp_path, given.side, 6), *THEORY)
    outcome = noising("convert", f"weights={file}", f"check={file}", *words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [row for row in summary["converted"]["checks"] if row["check"].startswith("outputs of")]
    assert [float(row["measured"]) < 2e-5 for row in rows] == [True]
    run = load(tmp_path / "run")
    assert isinstance(run.denoiser.model, JiT)
    level = run.denoiser.schedule(torch.tensor([0.25], dtype=torch.float64))
    assert run.denoiser.noise_label(level).item() == 0.75  # their time runs from the noise to the image
    outcome = noising("convert", "checkpoint=run", "to=jit", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == given.weights.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in given.weights.items())


def test_a_trainings_file_gives_either_average_or_its_raw_weights(noising: Command, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    weights = fixture(NAME).weights
    content = {
        "model": weights,
        "model_ema1": {name: weight + 1 for name, weight in weights.items()},
        "model_ema2": {name: weight + 2 for name, weight in weights.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 7,
        "args": Namespace(model="JiT-B/16"),
    }
    torch.save(content, tmp_path / "checkpoint-last.pth")
    path, bias = str(tmp_path / "checkpoint-last.pth"), "net.final_layer.linear.bias"
    for averaged, shift in ((True, 1.0), (False, 0.0)):
        torch.testing.assert_close(read_weights(path, averaged).tensors[bias], weights[bias] + shift)
    with pytest.raises(ConfigError, match="no entry model_ema3 with weights, but model, model_ema1, model_ema2, opti"):
        read_weights(path, entry="model_ema3")
    words = (*images(tmp_path, 16, 6), *THEORY, "unchecked=true", "weights=checkpoint-last.pth", "entry=model_ema2")
    outcome = noising("convert", *words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    run = load(tmp_path / "run", trusted=True)
    torch.testing.assert_close(run.denoiser.model.last.out.bias, weights[bias] + 2)
    assert run.source["converted"]["entry"] == "model_ema2"
