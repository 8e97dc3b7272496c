"""The classes that a checkpoint's config may name: a file from a stranger must not choose what is run."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noising.config import choices
from noising.config.instantiate import locate
from noising.config.secrets import is_reference
from noising.errors import ConfigError

TRUSTED = ("torch.optim",)
"""Modules of which every public class may be named, besides the classes in conf/."""


def require_trusted(config: Any, source: str) -> None:
    """Raise ConfigError if a `_target_` anywhere in the config is no choice of conf/, nor allowed.

    Allowed are the modules that NOISING_ALLOW names, separated by commas, and those in the current folder, since the
    user wrote them. Other names of noising's cannot be allowed: some of its functions write files or start programs.

    source: where the config is from, for the message.
    """
    allowed = [name.strip() for name in os.environ.get("NOISING_ALLOW", "").split(",")]
    allowed = [name for name in allowed if name and not _within(name, ("noising",))]
    if not isinstance(config, Mapping):  # OmegaConf would read a string as YAML, and find other nodes in it
        raise ConfigError(f"{source}: its config is not a mapping: it was not written by noising")
    # a run stores its config resolved; ${oc.create:...} would make nodes after this check
    for name, text in _texts(config):
        if "${" in text and not is_reference(name, text):
            raise ConfigError(f"{source}: its config holds an interpolation ({text[:40]!r}): a run stores none")
    for target in _targets(config):
        if not _trusted(target, allowed):
            name = target.partition(".")[0]
            reason = f"is not of noising: if you trust it, set NOISING_ALLOW={name}"
            if name in sys.stdlib_module_names:
                reason = "is of Python itself: no run stores it"
            elif name == "noising":
                reason = "is no choice of noising's: no run of this version stores it"
            raise ConfigError(f"{source}: its config names {target}, which {reason}")


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
    trusted = (*TRUSTED, *allowed, *(name for name in here if name != "noising"))
    if not _within(target, trusted) or (_within(target, TRUSTED) and "._" in target):
        return False  # without importing it
    try:
        found = locate(target, "")
    except ConfigError:
        return True  # the trusted module has no such name, and building it will say so
    # `mine.os.system` begins with a trusted module, and leaves it by what that has imported
    return _within(str(getattr(found, "__module__", "")), trusted)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
