"""Secrets among the options: they come from the environment, and no file of a run holds one.

Hydra writes down what is on the command line and in YAML before any of our code runs. So a secret that stands there is
refused; given as ${oc.env:NAME}, that reference is what every file has, and what a checkpoint is loaded with again.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
    given = OmegaConf.to_container(config, resolve=False)
    for path, value in _strings(given):
        name = path.rpartition(".")[2]
        if value and "${" not in value and value != "???" and masked(value, name) != value:
            raise ConfigError(
                f"{path} is a secret, by its name or form, and would be in the run's files: set a variable of the "
                f"environment, say MY_KEY, and write '{path}=${{oc.env:MY_KEY}}'"
            )


def _strings(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and text of every string in a config, without Hydra's copy of the command line."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if f"{path}.{name}" != "hydra.overrides":
                yield from _strings(value, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, path)
    elif isinstance(node, str):
        yield path, node
