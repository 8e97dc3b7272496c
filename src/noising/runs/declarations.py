"""Declarations: the title, the unit and the better direction of a number, which its run stores beside it.

A number's name is "split/name", and its declaration is that of the name. What belongs to a number (standard errors,
ends of intervals, the same of real images) has the number's name and an ending, and no declaration of its own.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

ERRORS = ("_mc_se", "_image_se")
"""Ends of the names of a number's standard errors: of times and noise, and over images."""
BESIDE = ("_se", "_low", "_high", "_baseline")
"""Ends of the names of what belongs to a number: its errors, intervals and yardstick."""


@dataclass(frozen=True)
class Declaration:
    """The meaning of a number, for tables, figures, rankings and loggers."""

    title: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    shown: bool = True
    """Whether it is among the few that stand in a sweep's table and figure."""

    @property
    def label(self) -> str:
        """The title with the unit, for an axis."""
        return f"{self.title}  [{self.unit}]" if self.unit else self.title


Declarations = Mapping[str, Declaration]
"""Declarations by a number's name, without its split."""


def declaration(name: str, declared: Declarations) -> Declaration:
    """The declaration of "split/name"; the name in words where there is none."""
    short = name.rpartition("/")[2]
    return declared.get(short) or Declaration(short.replace("_", " "))


def measurements(numbers: Iterable[str]) -> list[str]:
    """The names of numbers, without those that belong to another."""
    return [name for name in numbers if not name.endswith(BESIDE)]


def to_summary(declared: Declarations) -> dict[str, dict[str, Any]]:
    """The entry `declared` of a summary."""
    return {name: asdict(one) for name, one in declared.items()}


def from_summary(summary: Mapping[str, Any]) -> dict[str, Declaration]:
    """The well-formed declarations that a summary holds; none in one of an earlier version."""
    found = {}
    for name, entry in summary.get("declared", {}).items():
        given = {field.name: entry[field.name] for field in fields(Declaration) if field.name in entry}
        with suppress(TypeError):  # without a title
            one = Declaration(**given)
            words = isinstance(one.title, str) and isinstance(one.unit, str) and isinstance(one.shown, bool)
            if words and one.better in ("lower", "higher", None):
                found[name] = one
    return found
