"""Whose code a checkpoint's config may name: a file from a stranger must not choose what is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noising.config import choices
from noising.config.instantiate import locate
from noising.config.secrets import is_reference
from noising.errors import ConfigError

__all__ = ["require_trusted"]


KNOWN = ("torch.optim",)
"""Whose every public class may be named, besides what conf/ names."""


def require_trusted(config: Any, source: str) -> None:
    """Raise ConfigError if a `_target_` anywhere in the config is no choice of conf/, nor allowed.

    Being of noising is not enough, and cannot be allowed: some of its functions write files or start programs.

    Allowed are the modules that NOISING_ALLOW names, separated by commas, and those that lie in the current folder: who
    keeps a class there wrote it. source: where the config is from, for the message.
    """
    allowed = [name.strip() for name in os.environ.get("NOISING_ALLOW", "").split(",")]
    allowed = [name for name in allowed if name and not _within(name, ("noising",))]
    if not isinstance(config, Mapping):  # OmegaConf would read a string as YAML, and find other nodes in it
        raise ConfigError(f"{source}: its config is not a mapping: it was not written by noising")
    # a run stores its config resolved; ${oc.create:...} makes nodes that nobody has looked at
    for name, text in _texts(config):
        if "${" in text and not is_reference(name, text):
            raise ConfigError(f"{source}: its config holds an interpolation ({text[:40]!r}): a run stores none")
    for target in _targets(config):
        if not _trusted(target, allowed):
            name = target.partition(".")[0]
            told = f"is not of noising: if you trust it, set NOISING_ALLOW={name}"
            if name in sys.stdlib_module_names:
                told = "is of Python itself: no run stores it"
            elif name == "noising":
                told = "is no choice of noising's: no run of this version stores it"
            raise ConfigError(f"{source}: its config names {target}, which {told}")


def _texts(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a config, keys too, and the key it stands at."""
    if isinstance(config, str):
        yield name, config
    elif isinstance(config, Mapping):
        for key, value in config.items():
            yield "", str(key)
            yield from _texts(value, str(key))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _texts(value)


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _targets(value)


def _trusted(target: str, allowed: list[str]) -> bool:
    first = target.partition(".")[0]
    here = [first] if Path(f"{first}.py").is_file() or Path(first, "__init__.py").is_file() else []
    if target in choices.targets():
        return True
    trusted = (*KNOWN, *allowed, *(name for name in here if name != "noising"))
    if not _within(target, trusted) or (_within(target, KNOWN) and "._" in target):
        return False  # not so much as imported
    try:
        found = locate(target, "")
    except ConfigError:
        return True  # of a trusted module that has no such name, which building it will say
    # `mine.os.system` begins well, and leads out through what a module has imported
    return _within(str(getattr(found, "__module__", "")), trusted)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
