"""Checkpoints that are whole files and hold something else: each is refused in one line, before any work."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import noising as package
from noising.commands.continuing import Continued, checkpoint_to_continue
from noising.errors import ConfigError
from noising.experiment import Experiment
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.training.checkpoint_content import with_plain_tensors
from tests.helpers import AS_TRAINED, SMALL, Command, composed

REMOVED = object()
FORMS: dict[str, Any] = {
    "removed": REMOVED,
    "list": [1],
    "text": "x",
    "none": None,
    "number": 7.5,
    "mapping": {},
    "shape": torch.ones(3, 5),
}
MANY = 12  # entries of a mapping, of which as many are tried


def places(content: Any, depth: int, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys from the top to every entry so deep, of large mappings to the first and the last."""
    items = list(content.items() if isinstance(content, dict) else enumerate(content) if type(content) is list else ())
    for key, value in items if len(items) <= MANY else (items[0], items[-1]):
        yield (*place, key)
        if depth > 1:
            yield from places(value, depth - 1, (*place, key))


def altered(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The content with another value at the place; only the containers above it are copies."""
    changed = copy.copy(content)
    node: Any = changed
    for key in place[:-1]:
        node[key] = copy.copy(node[key])
        node = node[key]
    if value is REMOVED:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return changed


@pytest.fixture
def content(trained: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(Run(trained).last_checkpoint, weights_only=True)
    return loaded


def require_one_line(error: ConfigError, path: Path, place: Any) -> None:
    assert "\n" not in str(error), place
    assert str(path) in str(error), (place, str(error))


@pytest.mark.parametrize("depth", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_network_is_made_of_any_content_or_it_is_one_line(
    depth: int, content: dict[str, Any], tmp_path: Path
) -> None:
    path, refused = tmp_path / "bad.ckpt", set()
    tops = ["noising_format", "state_dict", "ema", "global_step", "times", "loss_sums"]
    chosen = [*places({key: content[key] for key in tops}, depth)]
    chosen += [("config",), *(("config", name) for name in ("data", "model", "schedule", "timesteps", "seed"))]
    for place in chosen:
        for form, value in FORMS.items():
            torch.save(altered(content, place, value), path)
            try:
                _ = package.load(path).denoiser
            except ConfigError as error:
                require_one_line(error, path, (place, form))
                refused.add((place[0], form))
    for entry in ("config", "ema", "state_dict", "global_step"):
        assert {(entry, "removed"), (entry, "list"), (entry, "text"), (entry, "none")} <= refused


@pytest.mark.parametrize("depth", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_training_goes_on_from_any_content_or_it_is_one_line(
    depth: int, content: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(tmp_path)
    run.last_checkpoint.parent.mkdir()
    config = composed(*SMALL[3:], "trainer.max_steps=30")
    experiment, results = Experiment(config), Results(run)
    trainer = experiment.trainer(results, experiment.callbacks(results))
    without = ("config", "made_with", "state_dict", "ema")  # the first two are not gone on from
    refused = set()
    for place in places({key: value for key, value in content.items() if key not in without}, depth):
        for form, value in FORMS.items():
            torch.save(altered(content, place, value), run.last_checkpoint)
            try:
                checkpoint_to_continue(run, trainer, experiment.module)
            except ConfigError as error:
                require_one_line(error, run.last_checkpoint, (place, form))
                refused.add((place[0], form))
    for entry in ("loops", "callbacks", "optimizer_states", "lr_schedulers", "times", "loss_sums", "epoch"):
        assert {(entry, "removed"), (entry, "text"), (entry, "none")} <= refused, entry
    torch.save(content, run.last_checkpoint)
    assert checkpoint_to_continue(run, trainer, experiment.module) == Continued(run.last_checkpoint, 1)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("state_dict",), REMOVED, "holds no state_dict: it was not written by noising"),
        (("state_dict",), [1], "holds no usable state_dict (Input should be a valid dictionary)"),
        (("ema",), [1], "holds no usable ema ("),
        (("ema", "weights"), REMOVED, "holds no usable ema.weights (Field required)"),
        (("global_step",), "x", "holds no usable global_step (Input should be a valid integer)"),
        (("config", "data"), REMOVED, "its config: data is missing or has no _target_"),
        (("config", "model"), REMOVED, "its config: model is missing or has no _target_"),
        (("ema", "weights", "model.stem.weight"), torch.zeros(4, 1, 3, 3), "holds another network than its options"),
        (("state_dict", "denoiser.model.stem.weight"), torch.zeros(4), "holds another network than its options"),
        (("times",), {"seen": torch.zeros(3).to_sparse()}, "holds a tensor that is no plain array of numbers"),
    ],
)
def test_commands_say_what_is_wrong_with_it(
    place: tuple[str, ...], value: Any, words: str, content: dict[str, Any], noising: Command, tmp_path: Path
) -> None:
    torch.save(altered(content, place, value), tmp_path / "bad.ckpt")
    for command in ("sample", "evaluate"):
        outcome = noising(command, "checkpoint=bad.ckpt", *(["n=1"] if command == "sample" else []))
        assert outcome.code == 2, outcome
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.startswith("error: checkpoint=bad.ckpt: ")
        assert words in outcome.err


def test_a_run_is_not_gone_on_with_from_another_networks_checkpoint(
    content: dict[str, Any], trained: Path, noising: Command, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    name = next(name for name, weight in content["state_dict"].items() if weight.ndim == 4)
    for place in (("state_dict", name), ("ema", "weights", name.removeprefix("denoiser."))):
        torch.save(altered(content, place, torch.zeros(2, 2)), tmp_path / "run" / "checkpoints" / "last.ckpt")
        outcome = noising("train", *AS_TRAINED, "trainer.max_steps=21", "hydra.run.dir=run", "resume=true")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
        assert f"last.ckpt: holds another network than its options describe: {place[0]}" in outcome.err
        assert "of shape (2, 2), not (" in outcome.err


def test_strides_of_a_checkpoint_do_not_matter(
    content: dict[str, Any], trained: Path, noising: Command, tmp_path: Path
) -> None:
    """An optimizer cannot write into a tensor of which several elements are one place in memory."""
    odd = copy.deepcopy(content)
    for state in odd["optimizer_states"][0]["state"].values():
        for average in ("exp_avg", "exp_avg_sq"):
            state[average] = state[average].flatten()[:1].expand(state[average].numel()).view(state[average].shape)
    for name, weight in odd["ema"]["weights"].items():
        odd["ema"]["weights"][name] = weight.flatten()[:1].expand(weight.numel()).view(weight.shape)
    odd["loss_sums"] = odd["loss_sums"][..., :1].expand(1, 2, 4)
    plain = with_plain_tensors(odd)
    weights, same = (of["optimizer_states"][0]["state"][0]["exp_avg"] for of in (odd, plain))
    assert torch.equal(weights, same)
    assert same.is_contiguous()
    shutil.copytree(trained, tmp_path / "run")
    torch.save(odd, tmp_path / "run" / "checkpoints" / "last.ckpt")
    outcome = noising("train", *AS_TRAINED, "trainer.max_steps=21", "hydra.run.dir=run", "resume=true")
    assert outcome.code == 0, outcome.err


def test_what_holds_itself_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["made_with"]["again"] = content["made_with"]
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ConfigError, match=r"bad\.ckpt expands to millions of entries"):
        package.load(tmp_path / "bad.ckpt")


SUMMARIES: list[dict[str, Any]] = [
    {"cards": [1]},
    {"cards": {"test/bound": 1}},
    {"cards": {"test/bound": {}}},
    {"cards": {"test/fd": {"samples": 3}}},
    {"declared": "x"},
    {"test/bound": "x"},
    {"test/bound": [1.0]},
    {"status": 3},
    {"ended": []},
]


@pytest.mark.parametrize("entries", SUMMARIES, ids=[json.dumps(entries) for entries in SUMMARIES])
def test_a_summary_of_another_kind_is_one_line(
    entries: dict[str, Any], trained: Path, noising: Command, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    summary = json.loads((trained / "summary.json").read_text()) | entries
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    outcome = noising(
        "train", *AS_TRAINED, "hydra.run.dir=run", "resume=true"
    )  # prints the summary of what is finished
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
    assert "summary.json is damaged: delete it and start the run again with resume=true" in outcome.err
    assert noising("compare", "run", "run").code in (0, 2)


def test_a_declaration_of_another_kind_is_none(trained: Path, noising: Command, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    summary = json.loads((trained / "summary.json").read_text())
    summary["declared"] |= {"bound": {}, "fd": {"title": 3}, "loss": {"title": "loss", "shown": []}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    outcome = noising("train", *AS_TRAINED, "hydra.run.dir=run", "resume=true")
    assert outcome.code == 0, outcome.err
