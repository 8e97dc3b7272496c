"""Config values against annotations: int, float, bool, str, Path, and lists, tuples and unions of these."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 2**63 - 1
"""The largest whole number that torch and NumPy count to."""
BUILT = object()  # stands for an object built from a nested node: fits any annotation
_YAML = (str, int, float, list, dict, type(None))


class MismatchError(Exception):
    """The value is not of the annotated type; the message is the type in the user's words."""


def convert(value: Any, hint: Any) -> Any:
    """The value as the annotation wants it; raises MismatchError where it cannot be.

    An int becomes a float, an integral float (YAML's 1e5) an int, a string a Path, a list a tuple; a bool is
    no number, and neither are nan, infinity, and what 64 bits cannot hold. An annotation that is not simple
    (a class of ours, a callable) accepts anything.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if value is BUILT:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, inner)
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise MismatchError("null")
    if origin is Literal:
        if value in inner:
            return value
        raise MismatchError("one of " + ", ".join(map(str, inner)))
    if hint in _SCALARS:
        accepts, change = _SCALARS[hint]
        if accepts(value):
            return change(value)
        infinite = hint is float and isinstance(value, (int, float)) and not isinstance(value, bool)
        raise MismatchError("a finite float" if infinite else _words(hint))
    collection = origin or hint
    if collection in (list, tuple, Sequence, Iterable, typing.Sequence):
        if not isinstance(value, (list, tuple)) or (
            collection is tuple and inner and inner[-1] is not Ellipsis and len(inner) != len(value)
        ):
            raise MismatchError(_words(hint))
        fixed = collection is tuple and inner and inner[-1] is not Ellipsis
        types_ = inner if fixed else [inner[0] if inner else Any] * len(value)
        try:
            values = [convert(item, kind) for item, kind in zip(value, types_, strict=True)]
        except MismatchError:
            raise MismatchError(_words(hint)) from None
        return tuple(values) if collection is tuple else values
    return value


def _convert_union(value: Any, members: Sequence[Any]) -> Any:
    for exact in (member for member in members if isinstance(member, type) and type(value) is member):
        return convert(value, exact)
    simple = any(member in _SCALARS for member in members)
    for member in members:
        if simple and isinstance(value, _YAML) and _is_class_of_objects(member) and not isinstance(value, member):
            continue  # float | Tensor: what YAML writes is no Tensor
        try:
            return convert(value, member)
        except MismatchError:
            continue
    raise MismatchError(" or ".join(_words(member) for member in members))


def _is_class_of_objects(hint: Any) -> bool:
    return isinstance(hint, type) and hint not in _SCALARS and hint not in (type(None), object, list, tuple)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond all floats
        return False


def _whole(value: Any) -> bool:
    return _number(value) and abs(value) <= LARGEST and float(value).is_integer()


_SCALARS: dict[Any, tuple[Callable[[Any], bool], Callable[[Any], Any]]] = {
    bool: (lambda value: isinstance(value, bool), bool),
    int: (_whole, int),
    float: (_number, float),
    str: (lambda value: isinstance(value, str), str),
    Path: (lambda value: isinstance(value, (str, Path)), Path),
}


def _words(hint: Any) -> str:
    if hint is type(None) or hint is None:
        return "null"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(member) for member in get_args(hint))
    if hint in (str, Path):
        return {str: "text", Path: "a path"}[hint]
    if get_origin(hint) in (list, tuple, Sequence, Iterable):
        return f"a list of {_words(get_args(hint)[0])}" if get_args(hint) else "a list"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
