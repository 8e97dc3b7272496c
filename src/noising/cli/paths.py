"""Options that name a file or a folder: taken as they are typed, whatever characters they hold.

In Hydra's grammar `=`, `,`, `[`, ... mean something else, and `~` and `é` nothing.
"""

import os
import re
from collections.abc import Sequence

from noising.config.words import QUOTED, quoted, unquoted

NO = ("false", "null", "no", "off", "0")
YES = ("true", "yes", "on", "1")
"""Values of `resume` that are no path."""
_AT_THE_TOP = ("checkpoint", "from", "init_from", "resume", "runs", "samples", "to")
_BY_NAME = re.compile(
    r".+\.(?:(?:\w+_)?(?:dir|file|folder|path|repo|root)|dirpath|filename|subdir"
    r"|checkpoint|reference|dinov2_weights|inception_weights)"
)
_SWEEP = re.compile(r"(?:choice|glob|interval|range|shuffle|sort|tag)\(.*\)", re.DOTALL)
_PART = re.compile(rf"\s*{QUOTED}(?=\s*(?:,|\Z))|(?:\$\{{[^}}]*\}}|[^,])+", re.DOTALL)


def with_paths(words: Sequence[str], multirun: bool) -> list[str]:
    """The overrides with their paths as values of Hydra's grammar.

    A path that exists is taken as it is typed. Any other loses the quotes around it, and with multirun is several where
    it has commas outside of quotes. `~` is the home folder, `${...}` an interpolation, `null` no path.
    """
    return [_with_path(word, multirun) for word in words]


def is_path(word: str) -> bool:
    """Whether a word that may be an override is a path: it or its folder is there, or it has a slash before its `=`."""
    key, folder = word.partition("=")[0], os.path.dirname(word)
    there = _exists(word) or (folder != "" and _exists(folder))
    return there or ("/" in key and not key.lstrip("+~").startswith("hydra/"))


def _with_path(word: str, multirun: bool) -> str:
    key, equals, value = word.partition("=")
    option = key.lstrip("+~")
    if not equals or not (option in _AT_THE_TOP or _BY_NAME.fullmatch(option)) or _is_no_path(option, value):
        return word
    if option == "runs" and value.startswith("[") and value.endswith("]"):
        return f"{key}=[{','.join(map(_value, _parts(value[1:-1])))}]"
    if _exists(value):
        paths = [value]
    elif option == "resume" or option.startswith("hydra."):  # of which there is one, in a sweep too
        paths = [unquoted(value)]
    elif multirun and _SWEEP.fullmatch(value):
        return word
    else:
        paths = _paths(value, multirun)
    return f"{key}={','.join(map(_value, paths))}"


def _is_no_path(option: str, value: str) -> bool:
    return value in ("", "???") or value.lower() in ((*YES, *NO) if option == "resume" else ("null",))


def _paths(value: str, multirun: bool) -> list[str]:
    """The path; or several, to sweep over, or to be told that -m is missing."""
    parts = _parts(value)
    several = len(parts) > 1 and (multirun or all(map(_exists, parts)))
    return parts if several else [unquoted(value)]


def _parts(value: str) -> list[str]:
    """The paths between the commas of a value that are outside of quotes."""
    return [unquoted(part.strip()) for part in _PART.findall(value)]


def _exists(path: str) -> bool:
    return os.path.lexists(os.path.expanduser(path))


def _value(path: str) -> str:
    return quoted(os.path.expanduser(path))
