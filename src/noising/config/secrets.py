"""Secrets among the options: they come from the environment, and no file of a run holds one.

Hydra writes down what is on the command line and in YAML before any of our code runs. So a secret that stands there is
refused; given as ${oc.env:NAME}, that reference is what every file has, and what a checkpoint is loaded with again.
"""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from noising.config.leaves import leaves
from noising.errors import ConfigError

_SECRET = re.compile(
    r"(^|[.+])key$|(^|[_.+-])((api|access|secret|private)_?key|token|secret|password|passwd|credentials?)$",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_REFERENCE = re.compile(r"\$\{oc\.env:\w+\}")


def is_reference(name: str, value: str) -> bool:
    """Whether the value of a secret option is a reference to a variable of the environment, and nothing else."""
    return _SECRET.search(name) is not None and _REFERENCE.fullmatch(value) is not None


def masked(value: Any, name: str = "") -> Any:
    """`value` without secrets: strings under names such as api_key, and passwords in URLs, become ***."""
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if isinstance(value, str) and not is_reference(name, value):
        return "***" if _SECRET.search(name) else _IN_URL.sub("***", value)
    return value


def without_secrets(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as it is written to a run's files."""
    resolved, given = (OmegaConf.to_container(cfg, resolve=resolve) for resolve in (True, False))
    found: dict[str, Any] = masked(_with_references(resolved, given))
    return found


def _with_references(resolved: Any, given: Any, name: str = "") -> Any:
    if isinstance(resolved, Mapping) and isinstance(given, Mapping):
        return {key: _with_references(value, given.get(key), str(key)) for key, value in resolved.items()}
    return given if isinstance(given, str) and is_reference(name, given) else resolved


def require_no_secret(config: DictConfig) -> None:
    """Raise ConfigError if an option holds a secret itself; config: as composed, with its `hydra` node."""
    for path, value in leaves(OmegaConf.to_container(config, resolve=False)):
        if not isinstance(value, str) or "${" in value or value in ("", "???") or path.startswith("hydra.overrides."):
            continue
        name = next(part for part in reversed(path.split(".")) if not part.isdigit())
        if masked(value, name) != value:
            raise ConfigError(
                f"{path} is a secret, by its name or form, and would be in the run's files: set a variable of the "
                f"environment, say MY_KEY, and write '{path}=${{oc.env:MY_KEY}}'"
            )
