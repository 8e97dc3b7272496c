"""Whose code a checkpoint's config may name: a file from a stranger must not choose what is run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noising.configuration import ConfigError, locate

__all__ = ["require_trusted"]

KNOWN = ("noising", "torch.optim", "lightning.pytorch.trainer")
"""What the project's own configs name."""


def require_trusted(config: Any, source: str) -> None:
    """Raise ConfigError if a `_target_` anywhere in the config is not of noising, nor allowed.

    Allowed are the modules that NOISING_ALLOW names, separated by commas, and those that lie in the current folder: who
    keeps a class there wrote it. source: where the config is from, for the message.
    """
    allowed = [name.strip() for name in os.environ.get("NOISING_ALLOW", "").split(",") if name.strip()]
    for target in _targets(config):
        if not _trusted(target, allowed):
            name = target.partition(".")[0]
            raise ConfigError(
                f"{source}: its config names {target}, which is not of noising: "
                f"if you trust it, set NOISING_ALLOW={name}"
            )


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
    trusted = (*KNOWN, *allowed, *here)
    if not _within(target, (*trusted, "lightning.pytorch")):
        return False  # not so much as imported
    try:
        found = locate(target, "")
    except ConfigError:
        return True  # of a trusted module that has no such name, which building it will say
    # `noising.data.order.os.system` begins well, and leads out through what a module has imported
    return _within(str(getattr(found, "__module__", "")), trusted)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
