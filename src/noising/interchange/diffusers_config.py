"""The options of diffusers' networks, as a ``config.json`` beside their weights gives them."""

from collections.abc import Mapping, Sequence
from typing import Any

from noising.errors import require


def options_said(
    config: Mapping[str, Any], defaults: Mapping[str, Any], known: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """The options of a ``config.json``, with the defaults of those that it leaves out.

    known: the values of an option that a network here can have, the most usual first. Raises ValueError for others.
    """
    said = {**defaults, **{name: value for name, value in config.items() if name in defaults}}
    for name, values in known.items():
        require(said[name] in values, foreign(name, said[name], values[0]))
    return said


def foreign(name: str, value: Any, expected: Any) -> str:
    """The message for an option of a config.json that none of the networks here has."""
    return f"{name}={value} in config.json is of no network here, which have {name}={expected}"
