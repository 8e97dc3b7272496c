"""The classes that a checkpoint's config may name: a file from a stranger must not choose what is run."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noising.config import choices
from noising.config.instantiate import locate
from noising.config.leaves import leaves
from noising.config.secrets import is_reference
from noising.errors import ConfigError

TRUSTED = ("torch.optim", "torchmetrics.image", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
"""Modules of which every public class may be named, besides the classes in conf/, if no option is the path of a file:
torchmetrics unpickles weights from there.
"""


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
    reads_files = {path.rpartition(".")[0] for path, _ in leaves(config) if path.endswith("_path")}
    for path, value in leaves(config):
        node, _, name = path.rpartition(".")
        # a run stores its config resolved; ${oc.create:...} would make nodes after this check
        for text in (path, value):
            if isinstance(text, str) and "${" in text and not is_reference(name, text):
                raise ConfigError(f"{source}: its config holds an interpolation ({text[:40]!r}): a run stores none")
        if name == "_target_" and not _trusted(str(value), allowed, () if node in reads_files else TRUSTED):
            package = str(value).partition(".")[0]
            reason = f"is not of noising: if you trust it, set NOISING_ALLOW={package}"
            if package in sys.stdlib_module_names:
                reason = "is of Python itself: no run stores it"
            elif package == "noising":
                reason = "is no choice of noising's: no run of this version stores it"
            raise ConfigError(f"{source}: its config names {value}, which {reason}")


def _trusted(target: str, allowed: list[str], public: tuple[str, ...]) -> bool:
    """public: modules of which public classes may be named."""
    if target in choices.targets():
        return True
    first = target.partition(".")[0]
    here = first != "noising" and (Path(f"{first}.py").is_file() or Path(first, "__init__.py").is_file())
    trusted = (*public, *allowed, *([first] if here else []))
    if not _within(target, trusted) or (_within(target, public) and "._" in target):
        return False  # without importing it
    try:
        found = locate(target, "")
    except ConfigError:
        return True  # the trusted module has no such name, and building it will say so
    # `mine.os.system` begins with a trusted module, and leaves it by what that has imported
    return _within(str(getattr(found, "__module__", "")), trusted)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
