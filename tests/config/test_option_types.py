"""Values that YAML writes against annotations: what each becomes, and what is expected of those that fit none."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Protocol

import pytest
from torch import Tensor, zeros

from noising.config.option_types import LARGEST, Built, MismatchError, convert

if TYPE_CHECKING:
    from nowhere import Nothing


@dataclass
class Part:
    """A class with a field whose type only type checkers know, which pydantic could not read as a model."""

    field: Nothing


class Draws(Protocol):
    def draw(self) -> int: ...


@pytest.mark.parametrize(
    ("hint", "value", "becomes"),
    [
        (int, 1e5, 100_000),
        (int, LARGEST, LARGEST),
        (float, 3, 3.0),
        (float, 10**30, 1e30),
        (int | float, 1.0, 1.0),
        (float | int, 1, 1),
        (int | float | None, None, None),
        (int | bool, True, True),
        (int | str, "3", "3"),
        (Path, "a", Path("a")),
        (str | Path | None, "a", "a"),
        (Sequence[int], [1, 2.0], [1, 2]),
        (Iterable[str], ["a"], ["a"]),
        (list, [1, "a"], [1, "a"]),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (tuple[int, ...], [], ()),
        (Optional[Literal["warn"]], "warn", "warn"),  # noqa: UP045
        (Any, {"a": 1}, {"a": 1}),
        (Mapping[str, Any] | None, {"a": 1}, {"a": 1}),
        (Callable[[int], int], 3, 3),  # not looked at: what is built may be anything
        (Draws, 3, 3),
    ],
)
def test_values_become_what_is_asked_for(hint: Any, value: Any, becomes: Any) -> None:
    found = convert(value, hint)
    assert (found, type(found)) == (becomes, type(becomes))


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, True, "int"),
        (int, "3", "int"),
        (int, 2**63, "int"),
        (int, 1e19, "int"),
        (int | None, 2**63, "int"),
        (int, math.nan, "int"),
        (float, True, "float"),
        (float, "3", "float"),
        (float, math.inf, "a finite float"),
        (float, 10**400, "a finite float"),
        (float | None, math.nan, "a finite float"),
        (float | None, [], "float or null"),
        (bool, 1, "bool"),
        (bool, "yes", "bool"),
        (str, 3, "text"),
        (Path | None, 3, "a path or null"),
        (Sequence[float], [0.5, math.nan], "a list of float"),
        (list[int], [True], "a list of int"),
        (list[int], "12", "a list of int"),
        (tuple[float, float], [1, 2, 3], "a list of float"),
        (Literal["a", "b"], "c", "one of a, b"),
        (bool | Literal["warn"] | None, "a", "bool or Literal['warn'] or null"),
        (float | Tensor, [1], "float or Tensor"),
        (Part, 3, "Part"),
        (Part | None, {"field": 3}, "Part or null"),
        (type(None), 3, "null"),
    ],
)
def test_what_fits_is_said_of_what_does_not(hint: Any, value: Any, expected: str) -> None:
    with pytest.raises(MismatchError) as caught:
        convert(value, hint)
    assert str(caught.value) == expected


def test_objects_are_taken_as_they_are() -> None:
    part, tensor, waiting = Part(3), zeros(1), Built()
    assert convert(part, Part | None) is part
    assert convert(tensor, float | Tensor) is tensor
    assert convert(waiting, int) is waiting
    assert convert([part, waiting], tuple[Part, ...]) == (part, waiting)


def test_the_commands_are_listed_without_pydantic() -> None:
    code = "import sys, noising.cli.main; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
