"""Objects from config nodes: a `_target_` and its options.

`make` builds a node. What the code knows and YAML should not repeat (channels, resolution, timesteps) it passes on
as facts, to the constructors that have parameters of these names. `check` looks at names and types alone and builds
nothing. Whatever is wrong with an option is one line that begins with the option's path.
"""

import difflib
import importlib
import inspect
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from noising.config.option_types import Built, MismatchError, convert
from noising.config.secrets import masked, without_values
from noising.errors import ConfigError, config_errors, in_one_line, one_line

T = TypeVar("T")
_DIRECTIVES: dict[str, Any] = {
    "_target_": str,
    "_partial_": bool,
    "_args_": list,
    "_convert_": Literal["none", "partial", "object", "all"],  # Hydra's; every node is made of plain containers here
    "_recursive_": bool,
}


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, or None if none is like it."""
    found = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.6)
    return found[0] if found else None


def make(node: Any, path: str, kind: type[T], /, **facts: Any) -> T:
    """Build a node: a mapping with `_target_`, or a plain mapping or list of such.

    `path` is the node's place in the config, for messages; `kind` the class of the result. A nested node is built too,
    with the same facts. An option that the node sets wins over a fact. With `_partial_: true` the result is a
    functools.partial. Raises ConfigError for all that is wrong with an option, for a ValueError or TypeError of the
    constructor, where its numbers are too large to compute with or to hold, where a file, a download or a package that
    it needs is not there, for whatever a class of the user's or of another package raises, and for another kind.
    """
    plain = _plain(node, path)
    _visit(plain, path)  # a misspelt option is told before anything costly (a data set, a network) is built
    built = _visit(plain, path, facts)
    if not isinstance(built, kind):
        found = "null" if built is None else type(built).__qualname__
        raise ConfigError(f"{path}: expected a {kind.__qualname__} of {kind.__module__}, got {found}")
    return built


def make_function(node: Any, path: str, /, **facts: Any) -> Any:
    """A node of a group of functions: the function with the node's options set, whether it says `_partial_` or not.

    An object that can be called, made by a class, will do as well. Raises ConfigError as `make` does.
    """
    target = locate(node.get("_target_"), path)
    return make({**node, "_partial_": True} if inspect.isfunction(target) else node, path, object, **facts)


def tried(path: str, kind: Any, part: Callable[..., Any], *given: Any) -> Any:
    """Call a part made with `_partial_`, and return its result; ConfigError if it raises, or gives another kind."""
    try:
        with config_errors(path):
            result = part(*given)
    except ConfigError:
        raise
    except Exception as error:  # the part is the user's: whatever it raises, say it
        raise ConfigError(f"{path}: {said(error)}") from error
    if not isinstance(result, kind):
        expected = getattr(kind, "__name__", kind)
        raise ConfigError(f"{path}: returns a {type(result).__qualname__}, but {expected} is expected")
    return result


def check(node: Any, path: str) -> None:
    """Raise the ConfigError that `make` would raise for names and types anywhere in the tree; build nothing."""
    _visit(_plain(node, path), path)


def _plain(node: Any, path: str) -> Any:
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:  # of a checkpoint, a variable of the environment that is not set here
        words = str(error).splitlines()[0].removeprefix("ConfigError raised while resolving interpolation: ")
        raise ConfigError(f"{path}: {words}") from error


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _visit(node: Any, path: str, facts: Mapping[str, Any] | None = None) -> Any:
    """The node, built with these facts; without any, only looked at, and `Built` where an object would be."""
    if isinstance(node, list):
        return [_visit(value, _join(path, place), facts) for place, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    for name, kind in _DIRECTIVES.items():
        if name in node:
            _converted(node[name], kind, _join(path, name), name)
    given = {name: value for name, value in node.items() if name not in _DIRECTIVES}
    if facts is None or node.get("_recursive_", True):
        given = {name: _visit(value, _join(path, name), facts) for name, value in given.items()}
    if "_target_" not in node:
        return given
    target = locate(node["_target_"], path)
    options = _options(target, given, path)
    positional = _visit(node.get("_args_", []), _join(path, "_args_"), facts)
    if facts is None:
        return Built()
    return _call(target, positional, options, path, facts, partially=node.get("_partial_", False))


def _call(
    target: Callable[..., Any],
    positional: list[Any],
    options: dict[str, Any],
    path: str,
    facts: Mapping[str, Any],
    partially: bool,
) -> Any:
    names = parameters(target)
    options |= {name: fact for name, fact in facts.items() if name in names and name not in options}
    if partially:
        return partial(target, *positional, **options)
    needed = [
        _join(path, name)
        for name, parameter in list(names.items())[len(positional) :]
        if parameter.default is parameter.empty
        and name not in options
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if needed:
        raise ConfigError(f"{path}: {_name(target)} needs {', '.join(needed)}")
    try:
        with config_errors(path):
            return target(*positional, **options)
    except ConfigError as error:
        raise ConfigError(without_values(str(error), options)) from error
    except Exception as error:
        if isinstance(error, TypeError | MemoryError) or (isinstance(error, RuntimeError) and _is_size(error)):
            raise ConfigError(without_values(f"{path}: {one_line(error)}{where(error)}", options)) from error
        # a file, a download or a package that is not there; of a user's class, whatever it raises
        if not isinstance(error, OSError | ImportError) and _is_ours(target):
            raise
        why = without_values(f"{in_one_line(str(error))}{where(error)}", options)
        raise ConfigError(f"{path}: {_name(target)} raised {type(error).__name__}: {why}") from error


def said(error: Exception) -> str:
    """An error of a user's part in one line: its kind, where its words do not say enough, and the user's own line."""
    kind = "" if isinstance(error, ValueError | TypeError) else type(error).__name__
    return f"{': '.join(filter(None, (kind, in_one_line(str(error)))))}{where(error)}"


def where(error: Exception) -> str:
    """The line of the user's own file that raised, " (mine.py:12)"; "" if a library's did alone."""
    here = Path.cwd()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(here) and not {"site-packages", "noising"}.intersection(file.parts):
            return f" ({file.relative_to(here)}:{frame.lineno})"
    return ""


def _is_ours(target: Callable[..., Any]) -> bool:
    """Whether an error of a class is for its caller: of noising, and of Lightning's Trainer."""
    return str(getattr(target, "__module__", "")).partition(".")[0] in ("noising", "lightning")


def _is_size(error: RuntimeError) -> bool:
    """Whether torch found something too large; it has no class of errors for that on a CPU."""
    return any(words in str(error) for words in ("can't allocate memory", "out of memory", "verflow"))


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__qualname__", repr(target))


def locate(target: Any, path: str) -> Callable[..., Any]:
    """The class or function of a dotted name; the longest importable prefix is the module."""
    if not isinstance(target, str):
        raise ConfigError(f"{path}._target_: expected a dotted name, got {target!r}")
    parts = target.split(".")
    if parts[0] == "__main__":
        raise ConfigError(
            f"{path}: a class defined in a script or a notebook cannot be found when the run is evaluated or resumed: "
            f"put {target.removeprefix('__main__.')} in a file, such as mine.py, and give it as mine.{parts[-1]}"
        )
    if not all(parts):
        raise ConfigError(f"{path}: cannot import _target_ {target!r}: it is not a dotted name")
    found: Any = None
    for count, part in enumerate(parts, start=1):
        module = ".".join(parts[:count])
        if count > 1 and hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(module)
        except Exception as error:  # the module is the user's: whatever it raises, say it
            if isinstance(error, ModuleNotFoundError) and error.name == module and found is not None:
                right = nearest(part, vars(found)) if hasattr(found, "__dict__") else None
                hint = f"; did you mean {right}?" if right else ""
                why = f"{'.'.join(parts[: count - 1])} has no {part!r}{hint}"
            else:
                kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
                why = kind + one_line(error)
            raise ConfigError(f"{path}: cannot import _target_ {target!r}: {why}") from error
    if not callable(found):
        raise ConfigError(f"{path}: _target_ {target!r} is not a class or function")
    return typing.cast("Callable[..., Any]", found)


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function by name; empty where it does not tell them."""
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):  # some builtins have no signature
        return {}


def _options(target: Callable[..., Any], given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The given options in the annotated types; raises ConfigError for a wrong name or type."""
    names = parameters(target)
    kinds = {parameter.kind for parameter in names.values()}
    hints = _hints(target)
    options = {}
    for name, value in given.items():
        if names and name not in names and inspect.Parameter.VAR_KEYWORD not in kinds:
            right = nearest(name, names)
            hint = f"; did you mean {_join(path, right)}?" if right else ""
            raise ConfigError(
                f"{_join(path, name)}: no such option{hint} ({_name(target)} has: {', '.join(names) or 'no options'})"
            )
        implicit = value is None and name in names and names[name].default is None  # def f(x: int = None)
        options[name] = value if implicit else _converted(value, hints.get(name, Any), _join(path, name), name)
    return options


def _converted(value: Any, kind: Any, path: str, name: str) -> Any:
    """The value in the annotated type; raises ConfigError for another."""
    try:
        return convert(value, kind)
    except MismatchError as wrong:
        shown = "null" if value is None else masked(value, name)
        raise ConfigError(f"{path}={shown}: expected {wrong}") from None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    annotated = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(annotated)
    except (NameError, TypeError, AttributeError):  # a name that is imported for type checkers only
        return {}
