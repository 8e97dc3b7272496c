"""The options at the top of the commands' configs: the line for a wrong one, and that conf/ has all that are named."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from noising.config.choices import conf_dir
from noising.config.options import OPTIONS, check_options
from noising.errors import ConfigError

NAN = float("nan")
TRAINER = yaml.safe_load((conf_dir() / "trainer" / "default.yaml").read_text())
COMMANDS = ("train", "evaluate", "sample", "latents", "likelihood", "compare", "benchmark", "reference", "convert")


def own(command: str) -> dict[str, Any]:
    """The options at the top of conf/COMMAND.yaml, without those that have no value."""
    config = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text())
    return {name: value for name, value in config.items() if value != "???"}


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_what_they_must_be(command: str) -> None:
    check_options(command, own(command))


def test_every_option_is_of_a_command() -> None:
    names = {f"{command}trainer.{name}" for command in ("", "evaluate ") for name in signature(Trainer).parameters}
    for command in COMMANDS:
        config = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text())
        names |= {name for name in config} | {f"{command} {name}" for name in config}
    assert set(OPTIONS) <= names


def test_what_is_absent_is_not_asked_for() -> None:
    check_options("train", {})
    check_options("train", {"trainer": None})
    check_options("train", {"trainer": 3, "mine": object()})


@pytest.mark.parametrize(
    ("command", "option", "value", "line"),
    [
        ("train", "seed", -1, "seed must be a whole number from 0, got -1"),
        ("train", "seed", True, "seed must be a whole number from 0, got True"),
        ("train", "seed", 1.5, "seed must be a whole number from 0, got 1.5"),
        ("train", "seed", 10**30, f"seed must be a whole number from 0 to {2**63 - 1}, got {10**30}"),
        ("train", "timesteps", 2.5, "timesteps must be a whole number from 1 to 1000000, got 2.5"),
        ("train", "timesteps", 10**9, "timesteps must be a whole number from 1 to 1000000, got 1000000000"),
        ("train", "timesteps", "{}", "timesteps must be a whole number from 1 to 1000000, got '{}'"),
        ("train", "label_dropout", 1, "label_dropout must be null (no classes) or a number in [0, 1), got 1"),
        (
            "train",
            "label_dropout",
            float("nan"),
            "label_dropout must be null (no classes) or a number in [0, 1), got nan",
        ),
        ("train", "label_dropout", False, "label_dropout must be null (no classes) or a number in [0, 1), got False"),
        ("train", "skip_nonfinite_steps", 1, "skip_nonfinite_steps must be true or false, got 1"),
        ("train", "checkpoint_every_n_steps", 0, "checkpoint_every_n_steps must be a whole number from 1, got 0"),
        ("train", "keep_checkpoints", None, "keep_checkpoints must be a whole number from 1, got None"),
        ("train", "tags", 3, "tags must be a list of words, got 3: e.g. tags=[first,try]"),
        ("train", "tags", ["a", 3], "tags must be a list of words, got ['a', 3]: e.g. tags=[first,try]"),
        ("train", "trainer", {"max_steps": 0}, "trainer.max_steps must be a whole number from 1, got 0"),
        ("evaluate", "splits", [], "splits must be a list of test, train, val, got []: e.g. splits=[test]"),
        ("evaluate", "splits", "tset", "splits must be a list of test, train, val, got tset: e.g. splits=[test]"),
        ("evaluate", "splits", ["tset"], "splits must be a list of test, train, val, got ['tset']: e.g. splits=[test]"),
        ("evaluate", "devices", 1025, "devices must be a whole number from 1 to 1024, got 1025"),
        ("sample", "n", 10**8, "n must be a whole number from 1 to 10000000, got 100000000"),
        ("sample", "batch_size", "half", "batch_size must be a whole number from 1, got half"),
        ("sample", "class_label", -1, "class_label must be a whole number from 0, got -1"),
        ("sample", "format", "jpeg", "format must be one of npz, png, got jpeg"),
        ("latents", "images", None, "images must be a whole number from 1, got None"),
        ("latents", "steps", [1, 10], "steps must be a list of whole numbers from 2, as [10,50], got [1, 10]"),
        ("latents", "steps", [1e12], "steps must be a list of whole numbers from 2, as [10,50], got [1000000000000.0]"),
        ("latents", "clip", 0, "clip must be a positive number or null, got 0"),
        ("latents", "clip", float("inf"), "clip must be a positive number or null, got inf"),
        ("likelihood", "images", 1, "images must be a whole number from 2, got 1"),
        ("likelihood", "replicates", 1, "replicates must be a whole number from 2, got 1"),
        ("likelihood", "start_time", "soon", "start_time=soon: expected a number or null"),
        ("likelihood", "clip", True, "clip=True: expected a number or null"),
        ("compare", "runs", ["a"], "runs must be two or more run folders, got ['a']: compare A B"),
        ("compare", "vary", None, "vary must be a list of entries of the cards, got None: e.g. vary=[sampler,grid]"),
        ("compare", "split", "night", "split must be test, train or val, got night"),
        ("reference", "count", 1, "count must be a whole number from 2, got 1"),
        ("reference", "from", "", "from='': expected a file's path, or null"),
        ("reference", "to", 3, "to=3: expected a file's path, or null"),
    ],
)
def test_the_line_for_a_wrong_value(command: str, option: str, value: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_options(command, {option: value})
    assert str(caught.value) == line


def test_what_is_read_otherwise_than_written() -> None:
    """YAML's 1e5 is a float; text is shown in quotes where it looks like a number, or like nothing."""
    found = check_options("train", {"seed": 1e5, "trainer": {**TRAINER, "max_steps": 2e3}})
    assert found == {"seed": 100_000, "trainer.max_steps": 2000}
    for value in ("3", ""):
        with pytest.raises(ConfigError, match=f"^seed must be a whole number from 0, got '{value}'$"):
            check_options("train", {"seed": value})


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("compare", "vary", "sampler"),
        ("evaluate", "splits", "test"),
        ("latents", "steps", 50),
        ("train", "tags", "first"),
    ],
)
def test_one_entry_of_a_list_needs_no_brackets(command: str, option: str, value: Any) -> None:
    assert check_options(command, {option: value}) == {option: [value]}
    assert check_options(command, {option: [value]}) == {}


def test_what_is_left_out_of_the_trainer_is_named() -> None:
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        trainer = {option: value for option, value in TRAINER.items() if option != name}
        with pytest.raises(ConfigError, match=f"^trainer.{name} must be a whole number from 1, got None$"):
            check_options("train", {"trainer": trainer})
