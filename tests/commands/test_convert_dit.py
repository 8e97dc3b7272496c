"""convert: files of DiT and SiT become runs and come back, and diffusers opens a DiT's run."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from noising.commands.foreign_weights import read_weights
from noising.errors import ConfigError
from noising.interchange.diffusers_dit import DiffusersDiT
from noising.interchange.dit import PublishedDiT
from noising.models.dit import DiT
from noising.trained import load
from tests.helpers import Command
from tests.models.helpers import awake

SIZES: dict[str, Any] = {"channels": 1, "out_channels": 2, "resolution": 8, "width": 16, "depth": 2, "heads": 2}
DDPM = ("experiment=dit", "file.heads=2", "unchecked=true")  # random weights predict no noise

WITHOUT = ("label_dropout=null",)


def network(**options: Any) -> DiT:
    torch.manual_seed(0)
    return awake(DiT(**SIZES | {"classes": 10} | options)).eval()


def same(run: Path, expected: dict[str, Tensor]) -> bool:
    """Whether a run has these weights."""
    found = load(run, trusted=True).denoiser.model.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], weight) for name, weight in expected.items()
    )


def test_a_trainings_file_goes_in_and_its_weights_come_out(noising: Command, tmp_path: Path) -> None:
    """As train.py of DiT and SiT writes it, with the arguments of its command line."""
    ours = network()
    theirs = PublishedDiT(ours).write(ours.state_dict())
    raw = {name: weight + 1 for name, weight in theirs.items()}
    arguments = Namespace(model="DiT-S/2", num_classes=10)
    torch.save({"model": raw, "ema": theirs, "opt": {"state": {}}, "args": arguments}, tmp_path / "0400000.pt")
    torch.save(theirs, tmp_path / "DiT-S-2.pt")
    outcome = noising("convert", "weights=0400000.pt", *DDPM, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert same(tmp_path / "run", ours.state_dict())
    for file, averaged, expected in (("0400000.pt", False, raw), ("DiT-S-2.pt", True, theirs)):
        found = read_weights(str(tmp_path / file), averaged).tensors
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert noising("convert", "checkpoint=run", "to=dit", "hydra.run.dir=out").code == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == theirs.keys()
    assert all(torch.equal(stored[name], weight) for name, weight in theirs.items())


SIT = ("schedule=rectified_flow", "parameterization=flow", "noise_label=scaled_time", "+noise_label.at_image=1")
SIT += ("+noise_label.at_noise=0", "label_dropout=0.1", "file.negated=true", "file.heads=2", "unchecked=true")


def test_sits_file_is_told_by_its_facts(noising: Command, tmp_path: Path) -> None:
    ours = network(out_channels=1, drops_variance=True)
    theirs = PublishedDiT(ours, negated=True).write(ours.state_dict())
    save_file(theirs, tmp_path / "sit.safetensors")
    outcome = noising("convert", "weights=sit.safetensors", *SIT, "hydra.run.dir=refused")
    assert outcome.code == 2
    assert "gives 2 channels, not 1: use variance=learned_range, or file.drops_variance=true for SiT" in outcome.err
    facts = "file.drops_variance=true"
    outcome = noising("convert", "weights=sit.safetensors", *SIT, facts, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert same(tmp_path / "run", ours.state_dict())
    assert noising("convert", "checkpoint=run", "to=dit", "file.negated=true", "hydra.run.dir=out").code == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(stored[name], weight) for name, weight in theirs.items())


def test_a_run_goes_out_to_diffusers_and_comes_back(noising: Command, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler, DiTTransformer2DModel

    ours = network(endpoint=True)
    layout = DiffusersDiT(ours)
    (tmp_path / "theirs" / "transformer").mkdir(parents=True)  # as in the folder of a pipeline
    save_file(layout.write(ours.state_dict()), tmp_path / "theirs/transformer/diffusion_pytorch_model.safetensors")
    (tmp_path / "theirs/transformer/config.json").write_text(json.dumps(layout.config()))
    outcome = noising("convert", "weights=theirs", *DDPM, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["converted"]["checks"]
    (row,) = [row for row in rows if row["check"] == "outputs of diffusers' DiTTransformer2DModel"]
    assert float(row["measured"]) < 2e-5
    assert same(tmp_path / "run", ours.state_dict())
    outcome = noising("convert", "checkpoint=run", "to=diffusers", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    theirs: Any = DiTTransformer2DModel.from_pretrained(str(tmp_path / "out"))
    scheduler: Any = DDPMScheduler.from_pretrained(str(tmp_path / "out"), subfolder="scheduler")
    assert scheduler.config.variance_type == "learned_range"
    x, steps, classes = torch.randn(2, 1, 8, 8), torch.tensor([3, 777]), torch.tensor([4, 10])
    with torch.no_grad():
        found, expected = theirs.eval()(x, steps, class_labels=classes).sample, ours(x, steps, classes)
    assert (found - expected).abs().max() / expected.abs().max() < 2e-5


def test_dits_own_sinusoids_go_to_diffusers_only_when_asked_to(noising: Command, tmp_path: Path) -> None:
    """Here of a network without classes, which in diffusers has one."""
    ours = network(classes=0)
    torch.save(PublishedDiT(ours).write(ours.state_dict()), tmp_path / "dit.pt")
    assert noising("convert", "weights=dit.pt", *DDPM, *WITHOUT, "hydra.run.dir=run").code == 0
    outcome = noising("convert", "checkpoint=run", "to=diffusers", "hydra.run.dir=out")
    assert outcome.code == 2
    assert "diffusers' DiT has the sinusoids of model.endpoint=true, this run has others" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    outcome = noising("convert", "checkpoint=run", "to=diffusers", "unchecked=true", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    outcome = noising("convert", "weights=out", *DDPM, *WITHOUT, "file.endpoint=false", "hydra.run.dir=back")
    assert outcome.code == 0, outcome.err  # the outputs are compared, with these sinusoids there too
    assert same(tmp_path / "back", ours.state_dict())


class Arguments:
    """A class that no file of weights needs."""


def test_files_that_are_not_read_are_refused_in_a_line(noising: Command, tmp_path: Path) -> None:
    ours = network()
    theirs = PublishedDiT(ours).write(ours.state_dict())
    torch.save({"ema": theirs, "args": Arguments()}, tmp_path / "other.pt")
    torch.save({"model": theirs, "args": Namespace()}, tmp_path / "raw.pt")
    for file, message in (
        ("other.pt", r"it holds tests.commands.test_convert_dit.Arguments \(code in it was not run\)"),
        ("raw.pt", "it has no entry with averaged weights, but model, args: try averaged=false"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_weights(str(tmp_path / file))
    save_file(theirs, tmp_path / "dit.safetensors")
    for words, message in (
        (["label_dropout=null"], "is trained with 10 classes: use label_dropout=0.0"),
        (["file.heads=3"], "width must be a multiple of heads=3, got 16"),
    ):
        outcome = noising("convert", "weights=dit.safetensors", *DDPM, *words, "hydra.run.dir=refused")
        assert outcome.code == 2, words
        assert message in outcome.err, outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
