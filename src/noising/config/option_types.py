"""Config values against annotations, by pydantic in strict mode, and what was expected in the user's words.

pydantic is imported where it is first used: the command line's help needs none of it.
"""

import types
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LARGEST = 2**63 - 1
"""The largest whole number that torch and NumPy count to."""
_UNIONS = (Union, types.UnionType)


class Built:
    """Stands for an object that a nested node will be built into: fits any annotation."""


class MismatchError(Exception):
    """The value is not of the annotated type; the message is the type in the user's words."""


def convert(value: Any, hint: Any) -> Any:
    """The value as the annotation wants it; raises MismatchError where it cannot be.

    An int becomes a float, an integral float (YAML's 1e5) an int, a string a Path, a list a tuple; a bool is
    no number, and neither are nan, infinity, and what 64 bits cannot hold. Annotations that are neither simple
    nor a class (a callable, a mapping) accept anything.
    """
    if isinstance(value, Built):
        return value
    try:
        return _adapter(hint).validate_python(value)
    except ValueError:
        raise MismatchError(_expected(value, hint)) from None


@cache
def _adapter(hint: Any) -> "TypeAdapter[Any]":
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(_option_type(hint), config=ConfigDict(strict=True, allow_inf_nan=False))


def _option_type(hint: Any) -> Any:
    """The annotation as pydantic is to read it."""
    from pydantic import BeforeValidator, Field, GetPydanticSchema, Strict
    from pydantic_core.core_schema import is_instance_schema

    origin, inner = get_origin(hint), get_args(hint)
    collection = origin or hint
    if hint is int:
        return Annotated[int, Field(ge=-LARGEST, le=LARGEST), BeforeValidator(integral)]
    if origin is Literal or hint in (float, bool, str, None, type(None), Any):
        return hint
    if hint is Path:
        return Annotated[Path, Strict(False)]
    if origin in _UNIONS:  # int last, for an integral float is a float first
        members = sorted(inner, key=lambda member: member is int)
        return Union[tuple(map(_option_type, members))]  # noqa: UP007
    if collection in (list, tuple, Sequence, Iterable):
        items = tuple(item if item is ... else _option_type(item) for item in inner)
        if collection is tuple:
            return Annotated[tuple[items or (Any, ...)], Strict(False)]  # type: ignore[misc]
        return Annotated[list[items or Any], Strict(False)]  # type: ignore[misc,valid-type]
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        return Annotated[Any, GetPydanticSchema(lambda *_: is_instance_schema((hint, Built)))]
    return Any


def integral(value: Any) -> Any:
    """A float without a fraction as an int, as YAML's 1e5; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _expected(value: Any, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    members = get_args(hint) if get_origin(hint) in _UNIONS else (hint,)
    if float in members and (type(value) is float or (hint is float and type(value) is int)):
        return "a finite float"
    return _words(type(value) if type(value) in members else hint)


def _words(hint: Any) -> str:
    if hint is type(None) or hint is None:
        return "null"
    if get_origin(hint) in _UNIONS:
        return " or ".join(_words(member) for member in get_args(hint))
    if hint in (str, Path):
        return {str: "text", Path: "a path"}[hint]
    if get_origin(hint) in (list, tuple, Sequence, Iterable):
        return f"a list of {_words(get_args(hint)[0])}" if get_args(hint) else "a list"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
