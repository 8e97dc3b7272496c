"""The gate for the options that a run's folder has recorded, before any of them is composed."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from noising.config.leaves import leaves
from noising.config.secrets import is_reference, variable
from noising.errors import ConfigError
from noising.runs.trust import Source, allowed_names, require_trusted_targets

_CODE = ("dinov2_repo", "feature_extractor_weights_path")
"""Options that are a folder of code, or a file that is unpickled: either is run."""
_FOLDERS = (".hydra", "checkpoints", "figures", "samples", "shards", "tensorboard")
"""Folders of a run that hold what it writes itself."""


def require_trusted_overrides(words: Sequence[str], source: str, place: Path) -> None:
    """Raise ConfigError if overrides that a run's record holds are more than a stranger may ask for.

    That is: a `_target_` that `require_trusted` refuses, an option of Hydra's own, a choice outside of the folders of
    configs, an interpolation, a folder of code. Nothing is composed or imported before. What the user writes on the
    command line again does not come from the record.

    source, place: as in `require_trusted`.
    """
    hydra, found = GlobalHydra.instance(), list[tuple[str, Any]]()
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)  # type: ignore[no-untyped-call]
    for word in words:
        found += _set_by(word, parser, source)
    references = {}
    for path, value in found:
        again = f"if you wrote it, give it again together with resume: '{path}=...'"
        for text in (path, value):
            if isinstance(text, str) and "${" in text:
                if not is_reference(path, text):
                    raise ConfigError(
                        f"{source}: its record of options holds an interpolation ({text[:40]!r}): {again}"
                    )
                references[path] = variable(text)
        if path.rpartition(".")[2] in _CODE and value is not None:
            raise ConfigError(f"{source}: its record of options names code to run ({path}): {again}")
    require_trusted_targets(found, Source(source, "its record of options", place))
    for path, name in references.items():
        if name not in allowed_names():
            raise ConfigError(
                f"{source}: its record of options reads the environment variable {name} into {path}: if you trust it, "
                f"add allow={name}"
            )


def require_own_files(folder: Path, source: str) -> None:
    """Raise ConfigError if a run's or a sweep's folder holds pipes or devices, or links that lead out of it.

    A pipe would be waited for, and a log or a table that is a link would be written wherever it leads. The folders of
    checkpoints and samples may lie elsewhere, on a larger disk; what others write (W&B) is passed over.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name in _FOLDERS or Path(parent, name, ".hydra").exists()]
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink():
                elsewhere = path.is_dir() and path.name in ("checkpoints", "samples")
                if not elsewhere and not path.resolve().is_relative_to(inside):
                    raise ConfigError(f"{source}: {path} links out of the run's folder: replace the link by its target")
            elif not path.is_dir() and not path.is_file():
                raise ConfigError(f"{source}: {path} is not a regular file: remove it")


def _set_by(word: str, parser: OverridesParser, source: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of all that an override sets, every value of a sweep too."""
    try:
        parsed = parser.parse_override(word)
    except HydraException as error:
        raise ConfigError(f"{source}: its record of options holds {word[:40]!r}, which is no override") from error
    key = parsed.get_key_element().lstrip("+~")
    if not re.fullmatch(r"[\w./@:-]+", key) or {"hydra", "allow"} & {*re.split(r"[./@:]", key)}:
        raise ConfigError(f"{source}: its record of options sets {key[:40]!r}, which noising never stores")
    if parsed.is_choice_sweep():
        for text in parsed.sweep_string_iterator():
            yield from _set_by(f"{key}={text}", parser, source)
    elif not parsed.is_sweep_override() and not parsed.is_delete():
        yield from leaves(parsed.value(), key)
