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

_PASSWORD = re.compile(r"(password|passwd|passphrase|passcode)s?$|(^|[_-])pwd$", re.IGNORECASE)
_SECRET = re.compile(
    r"^key$|(^|[_-])((api|access|secret|private|ssh|gpg|pgp|rsa|encryption|signing|deploy|account|master)[_-]?keys?([_-]id)?"
    r"|tokens?|secrets?([_-]id)?|credentials?|auth|authorization|bearer|cookies?|dsn)$",
    re.IGNORECASE,
)
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_IN_QUERY = re.compile(r"(?<=[?&;#])([\w.~%-]+)=([^&;#\s]+)")
_REFERENCE = re.compile(r"\$\{oc\.env:(\w+)\}")


def is_secret(path: str) -> bool:
    """Whether a dotted path is one of secrets, by the name of any of its parts: all of `tokens.hub` is one."""
    return any(_is_password(name) or _SECRET.search(name) for name in _names(path))


def _is_password(name: str) -> bool:
    return _PASSWORD.search(name) is not None


def _names(path: str) -> list[str]:
    """The parts of a path, apiKey as api_Key."""
    return [_CAPITAL.sub("_", name) for name in path.lstrip("+~").split(".")]


def is_reference(path: str, value: str) -> bool:
    """Whether the value of a secret option is a reference to a variable of the environment, and nothing else."""
    return is_secret(path) and _REFERENCE.fullmatch(value) is not None


def variable(reference: str) -> str:
    """Name of the variable of the environment that a reference is to."""
    return reference.removeprefix("${oc.env:").removesuffix("}")


def masked(value: Any, path: str = "") -> Any:
    """`value` without secrets: what stands under names such as api_key, and secrets in URLs, become ***.

    Numbers are secrets only under a password's name: max_tokens is 512.
    """
    if isinstance(value, Mapping):
        return {key: masked(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, path) for item in value]
    if isinstance(value, str) and not is_reference(path, value):
        return "***" if is_secret(path) else _IN_QUERY.sub(_masked_entry, _IN_URL.sub("***", value))
    if isinstance(value, int | float) and not isinstance(value, bool) and any(map(_is_password, _names(path))):
        return "***"
    return value


def _masked_entry(found: re.Match[str]) -> str:
    """An entry NAME=VALUE of a URL's query."""
    secret = is_secret(found[1].replace(".", "_")) or found[1].lower().endswith(("sig", "signature"))
    return f"{found[1]}=***" if secret else found[0]


def without_values(text: str, options: Mapping[str, Any]) -> str:
    """A message about options without the values of those that are secrets, which whoever raised it may have quoted."""
    for name, value in options.items():
        if isinstance(value, str) and value and is_secret(name):
            text = text.replace(value, "***")
    return text


def without_secrets(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as it is written to a run's files."""
    resolved, given = (OmegaConf.to_container(cfg, resolve=resolve) for resolve in (True, False))
    found: dict[str, Any] = masked(_with_references(resolved, given))
    return found


def _with_references(resolved: Any, given: Any, path: str = "") -> Any:
    if isinstance(resolved, Mapping) and isinstance(given, Mapping):
        return {key: _with_references(value, given.get(key), f"{path}.{key}") for key, value in resolved.items()}
    if isinstance(resolved, list) and isinstance(given, list):
        return [_with_references(*both, path) for both in zip(resolved, given, strict=True)]
    return given if isinstance(given, str) and is_reference(path, given) else resolved


def require_no_secret(config: DictConfig) -> None:
    """Raise ConfigError if an option holds a secret itself; config: as composed, with its `hydra` node."""
    for path, value in leaves(OmegaConf.to_container(config, resolve=False)):
        reference = isinstance(value, str) and "${" in value
        if (
            not reference
            and value not in ("", "???")
            and not path.startswith("hydra.overrides.")
            and masked(value, path) not in (value,)  # nan is not equal to itself
        ):
            raise ConfigError(
                f"{path} looks like a secret, and would be written to the run's files: set an environment variable, "
                f"such as MY_KEY, and write '{path}=${{oc.env:MY_KEY}}'"
            )
