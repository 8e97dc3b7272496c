"""init_from: a training begins with another's averaged weights, where they fit, and says what is new."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from noising.commands.starting import start_from
from noising.errors import ConfigError
from noising.experiment import Experiment
from tests.helpers import SMALL, Command, composed

FEW = [*SMALL, "trainer.max_steps=1", "callbacks.samples=null", "optimizer.lr=1e-12"]  # the weights stay as they begin


def averages(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["ema"][
        "weights"
    ]
    return weights


def card(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())["cards"]["test/bound"]
    return found


def test_a_training_begins_with_the_averaged_weights(trained: Path, noising: Command, tmp_path: Path) -> None:
    done = noising(
        "train", "experiment=null", *FEW, f"init_from={trained}", "schedule=linear", "seed=5", "hydra.run.dir=run"
    )
    assert done.code == 0, done.err
    before, after = averages(trained), averages(tmp_path / "run")
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-8)
    total = sum(weight.numel() for weight in before.values())
    assert f"{total:,} of {total:,} weights are copied from step 20" in done.out
    source = card(tmp_path / "run")["init_from"]
    assert (source["step"], source["weights"], source["of"]) == (20, total, total)
    assert (source["new"], source["not_used"]) == ([], [])
    # what is measured later says so too, of the file alone
    (tmp_path / "elsewhere.ckpt").write_bytes((tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes())
    for words in (["bound=stratified", "splits=[test]"], ["sampler=ddim", "sampler.steps=2", "metrics.n=70"]):
        again = noising("evaluate", "checkpoint=elsewhere.ckpt", *words, f"hydra.run.dir={len(words[0])}")
        assert again.code == 0, again.err
        cards = json.loads((tmp_path / str(len(words[0])) / "summary.json").read_text())["cards"]
        assert [one["init_from"] for one in cards.values()] == [source] * len(cards)


def test_a_resumed_run_does_not_begin_again(trained: Path, noising: Command, tmp_path: Path) -> None:
    assert noising("train", *SMALL, f"init_from={trained}", "trainer.max_steps=3", "hydra.run.dir=run").code == 0
    source = card(tmp_path / "run")["init_from"]
    more = noising("train", "resume=run", "trainer.max_steps=4")
    assert (more.code, "weights are those" in more.out) == (0, False), more.err
    assert card(tmp_path / "run")["init_from"] == source
    other = noising("train", "resume=run", "init_from=null", "trainer.max_steps=5")
    assert other.code == 2
    assert "init_from=None, not " in other.err


def test_what_does_not_fit_is_named(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    denoiser = Experiment(composed("label_dropout=0.1", "model.multipliers=[1,2,2]")).denoiser
    first = {name: value.clone() for name, value in denoiser.state_dict().items()}
    with caplog.at_level(logging.INFO):
        found = start_from(str(trained), denoiser)
    theirs, ours = averages(trained), denoiser.state_dict()
    same = [name for name in theirs if name in first and first[name].shape == theirs[name].shape]
    assert 0 < len(same) < len(ours)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name] if name in same else first[name], rtol=0, atol=0)
    assert [line.split(" ")[0] for line in found["new"]] == [name for name in ours if name not in same]
    assert "model.class_embedding.weight (11, 32), missing in the checkpoint" in found["new"]
    assert found["not_used"] == [name for name in theirs if name not in ours]
    assert found["weights"] == sum(theirs[name].numel() for name in same)
    assert f"newly initialized: {'; '.join(found['new'][:5])} and {len(found['new']) - 5} more" in caplog.text


def test_another_network_and_no_file_are_refused(trained: Path, tmp_path: Path, noising: Command) -> None:
    with pytest.raises(ConfigError, match=r"none of its \d+ tensors fits this network: model\.0\.weight"):
        start_from(str(trained), torch.nn.ModuleDict({"model": torch.nn.Sequential(torch.nn.Linear(7, 7))}))  # type: ignore[arg-type]
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for given, line in (("nowhere", "no run's folder or checkpoint file there"), ("text.ckpt", "text.ckpt")):
        done = noising("train", *FEW, f"init_from={given}")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith(f"error: init_from={given}: ")
        assert line in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["text.ckpt"]
