"""Options against constructors: what is built, which facts arrive, and the one line for each mistake."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from noising.config.instantiate import check, make, nearest
from noising.errors import ConfigError, UsageError, config_errors


class Grid:
    def __init__(self, timesteps: int, power: float = 1.0) -> None:
        if timesteps < 1:
            raise ValueError(f"timesteps must be at least 1,\n  got {timesteps}")
        self.timesteps, self.power = timesteps, power


class Network:
    def __init__(
        self,
        channels: int,
        width: int = 8,
        dropout: float = 0.0,
        mults: tuple[int, ...] = (1, 2),
        folder: Path | None = None,
        skip: bool = True,
        limit: int | float | None = None,
        grid: Grid | None = None,
    ) -> None:
        self.options: dict[str, Any] = {key: value for key, value in locals().items() if key != "self"}


def node(target: str, **options: Any) -> Any:
    return OmegaConf.create({"_target_": f"{__name__}.{target}", **options})


def message(config: Any, path: str = "model", **facts: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(config, path, object, **facts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_facts_go_to_the_constructors_that_have_them_and_the_node_wins() -> None:
    built = make(
        node("Network", width=16, grid=node("Grid", timesteps=5)),
        "model",
        Network,
        channels=3,
        timesteps=100,
        power=2.0,
    )
    assert (built.options["channels"], built.options["width"]) == (3, 16)
    assert (built.options["grid"].timesteps, built.options["grid"].power) == (5, 2.0)
    assert make(node("Grid"), "grid", Grid, timesteps=7, channels=1).timesteps == 7


def test_what_is_built_is_of_the_kind_that_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^model: expected a Network of .*test_instantiate, got Grid$"):
        make(node("Grid", timesteps=7), "model", Network)
    with pytest.raises(ConfigError, match=r"^model: expected a Network of .*test_instantiate, got null$"):
        make(None, "model", Network)


def test_partial() -> None:
    waiting = make(node("Network", _partial_=True, width=4), "model", partial, dropout=0.5)
    assert isinstance(waiting, partial)
    assert waiting.keywords == {"width": 4, "dropout": 0.5}
    assert waiting(channels=2).options["channels"] == 2


def test_mappings_and_lists_of_nodes() -> None:
    built = make(
        OmegaConf.create({"a": node("Grid"), "b": [node("Grid", timesteps=2)], "c": 1}), "all", dict, timesteps=9
    )
    assert (built["a"].timesteps, built["b"][0].timesteps, built["c"]) == (9, 2, 1)
    assert "all.b.0: timesteps must be" in message([node("Grid", timesteps=0)], "all.b")


@pytest.mark.parametrize(
    ("options", "name", "arrives"),
    [
        ({"width": 1e3}, "width", 1000),  # YAML's 1e3 is a float
        ({"dropout": 1}, "dropout", 1.0),
        ({"mults": [1, 2, 4]}, "mults", (1, 2, 4)),
        ({"folder": "a/b"}, "folder", Path("a/b")),
        ({"folder": None}, "folder", None),
        ({"limit": 1.0}, "limit", 1.0),  # of int | float the exact type: 1.0 is a fraction, 1 a count
        ({"limit": 1}, "limit", 1),
    ],
)
def test_values_arrive_in_the_annotated_type(options: dict[str, Any], name: str, arrives: Any) -> None:
    value = make(node("Network", **options), "model", Network, channels=1).options[name]
    assert value == arrives
    assert type(value) is type(arrives)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"width": "big"}, "model.width=big: expected int"),
        ({"width": 2.5}, "model.width=2.5: expected int"),
        ({"width": True}, "model.width=True: expected int"),
        ({"width": None}, "model.width=null: expected int"),
        ({"skip": 1}, "model.skip=1: expected bool"),
        ({"mults": [1, "x"]}, "model.mults=[1, 'x']: expected a list of int"),
        ({"folder": 3}, "model.folder=3: expected a path or null"),
        ({"limit": "all"}, "model.limit=all: expected int or float or null"),
    ],
)
def test_wrong_type(options: dict[str, Any], line: str) -> None:
    assert message(node("Network", **options), channels=1) == line
    with pytest.raises(ConfigError) as caught:
        check(OmegaConf.create({"model": node("Network", **options)}), "")
    assert str(caught.value) == line


def test_misspelt_option_names_the_nearest() -> None:
    line = message(node("Network", widht=3))
    assert line.startswith("model.widht: no such option; did you mean model.width? (Network has: channels, ")
    line = message(node("Network", grid=node("Grid", timestep=3)), channels=1)
    assert line.startswith("model.grid.timestep: no such option; did you mean model.grid.timesteps? (Grid has: ")


def test_what_the_constructor_refuses_is_one_line() -> None:
    assert message(node("Grid", timesteps=0), "schedule") == "schedule: timesteps must be at least 1, got 0"
    assert message(node("Network"), "model") == "model: Network needs model.channels"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nowhere.Mine", "No module named 'nowhere'"),
        (f"{__name__}.Netwrk", f"{__name__} has no 'Netwrk'; did you mean Network?"),
        ("a..b", "it is not a dotted name"),
    ],
)
def test_target_that_cannot_be_imported(target: str, why: str) -> None:
    assert message({"_target_": target}) == f"model: cannot import _target_ {target!r}: {why}"


@pytest.mark.parametrize(
    ("directive", "value", "expected"),
    [
        ("_args_", float("nan"), "list"),
        ("_args_", 3, "list"),
        ("_args_", None, "list"),
        ("_partial_", 1, "bool"),
        ("_recursive_", "no", "bool"),
        ("_convert_", "most", "one of none, partial, object, all"),
        ("_target_", None, "text"),
        ("_target_", 3, "text"),
    ],
)
def test_a_directive_of_the_wrong_kind_is_an_option_of_the_wrong_kind(
    directive: str, value: Any, expected: str
) -> None:
    shown = "null" if value is None else value
    wrong = {**node("Grid", timesteps=3), directive: value}
    with pytest.raises(ConfigError, match=rf"^sampler\.{directive}={shown}: expected {expected}$"):
        check(wrong, "sampler")


def test_check_builds_nothing_and_needs_no_facts() -> None:
    check(node("Network", width=2, grid=node("Grid", timesteps=0)), "model")  # Grid(0) would raise


def test_blaming_names_the_option_once() -> None:
    with pytest.raises(UsageError, match=r"^data: no images$"), config_errors("run"), config_errors("data"):
        raise ValueError("no images")
    with pytest.raises(KeyError), config_errors("data"):
        raise KeyError("a defect, not a mistake of the user's")


def test_nearest() -> None:
    assert nearest("cosin", ["cosine", "linear"]) == "cosine"
    assert nearest("zzz", ["cosine", "linear"]) is None
