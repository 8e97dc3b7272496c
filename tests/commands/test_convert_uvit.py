"""convert: U-ViT's files become runs, and runs of its network such files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from noising.models.uvit import UViT
from noising.trained import load
from tests.commands.helpers import images
from tests.helpers import Command
from tests.interchange.helpers import FOLDER, fixture

FIXTURES = [("uvit_class", 6, "file.heads=2"), ("uvit_uncond", 0, "file.head_width=16")]


@pytest.mark.parametrize(("name", "classes", "heads"), FIXTURES)
def test_a_file_becomes_a_run_and_the_run_the_file(
    name: str, classes: int, heads: str, noising: Command, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    given, file = fixture(name), FOLDER / f"{name}.safetensors"
    words = (*images(tmp_path, given.side, classes), "schedule=vpsde", "+noise_label.at_noise=999", heads)
    outcome = noising("convert", f"weights={file}", f"check={file}", *words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [row for row in summary["converted"]["checks"] if row["check"].startswith("outputs of")]
    assert [float(row["measured"]) < 2e-5 for row in rows] == [True]
    network = load(tmp_path / "run").denoiser.model
    assert isinstance(network, UViT)
    assert sum(parameter.numel() for parameter in network.parameters()) == given.facts["parameters"]
    outcome = noising("convert", "checkpoint=run", "to=uvit", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == given.weights.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in given.weights.items())


def test_heads_that_are_not_told_are_asked_for(noising: Command, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = FOLDER / "uvit_uncond.safetensors"
    words = (f"weights={file}", f"check={file}", *images(tmp_path, 8, 0), "unchecked=true")
    outcome = noising("convert", *words, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "its names do not tell the heads of 48 channels: say it by file.heads" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_null_class_is_the_last_row_where_it_is_said(noising: Command, tmp_path: Path) -> None:
    """Of six rows one is no class: the images have five."""
    (tmp_path / "images").mkdir()
    file = FOLDER / "uvit_class.safetensors"
    data = images(tmp_path, 8, 5)
    words = (f"weights={file}", f"check={file}", *data, "label_dropout=0.1", "file.heads=2")
    outcome = noising("convert", *words, "hydra.run.dir=refused")
    assert outcome.code == 2
    assert "is trained with 6 classes" in outcome.err
    outcome = noising("convert", *words, "file.null_class=true", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    embedding = load(tmp_path / "run", trusted=True).denoiser.model.class_embedding
    assert (embedding.classes, embedding.num_embeddings) == (5, 6)
