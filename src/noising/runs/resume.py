"""The run that a command means by `resume`, and the options under which it may go on."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from noising.config.secrets import masked
from noising.config.words import unquoted
from noising.errors import ConfigError
from noising.runs.folder import Run
from noising.runs.rows import flat
from noising.runs.sizes import require_written_out

log = logging.getLogger(__name__)

_DEPTH = 3  # how many folders below the root a run or a sweep may lie


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any], may_differ: Sequence[str]) -> list[str]:
    """Differences between two configs, as "option=now, not before"; may_differ: options or groups passed over."""
    old, new = flat(masked(before)), flat(masked(now))
    return [
        f"{option}={new.get(option)}, not {old.get(option)}"
        for option in {**old, **new}
        if old.get(option) != new.get(option) and not {option, option.partition(".")[0]} & {*may_differ}
    ]


def find_resumable(root: Path, overrides: Sequence[str]) -> Path | None:
    """The newest run under `root` started with these overrides (in any order) that has not finished."""
    wanted = _essential(overrides)
    for file in _newest_first(root, ".hydra/overrides.yaml"):
        folder = file.parent.parent
        if _essential(read_overrides(file)) != wanted:
            continue
        try:
            if Run(folder).status != "finished":
                return folder
        except ConfigError as error:
            log.warning("resume: a run is skipped: %s", error)
    return None


def find_sweep(root: Path, overrides: Sequence[str], jobs: int | None) -> Path | None:
    """The newest sweep under `root` started with these overrides of which a job has not finished.

    jobs: how many the overrides make; None if only the sweeper knows, and any such sweep may go on.
    """
    wanted = _essential(overrides)
    for file in _newest_first(root, "multirun.yaml"):
        if _essential(read_overrides(file, "hydra", "overrides", "task")) != wanted:
            continue
        begun = [path.parent.parent for path in file.parent.glob("*/.hydra/overrides.yaml")]
        if jobs is None or len(begun) < jobs or not all(map(_finished, begun)):
            return file.parent
    return None


def _finished(job: Path) -> bool:
    try:
        return Run(job).status == "finished"
    except ConfigError:  # damaged: the job will say so
        return False


def _essential(overrides: Sequence[str] | None) -> list[tuple[str, str]] | None:
    """The options of overrides and their values, however these are quoted."""
    if overrides is None:  # no list of options can be read: it equals no other
        return None
    words = (o.partition("=") for o in overrides if not o.lstrip("+~").startswith(("resume=", "hydra.", "hydra/")))
    return sorted((option, unquoted(value)) for option, _, value in words)


def _newest_first(root: Path, name: str) -> list[Path]:
    found = [path for depth in range(_DEPTH + 1) for path in Path(root).glob("*/" * depth + name)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, str(path)), reverse=True)


def read_overrides(file: Path, *keys: str) -> list[str] | None:
    """The list of strings at `keys` of a YAML file, as they stand there, without resolving one; None if it has none."""
    if not file.is_file():  # a pipe would be waited for
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        require_written_out(content)
        for key in keys:
            content = content[key]
    except (yaml.YAMLError, ValueError, OSError, LookupError, TypeError, RecursionError):
        return None
    return [str(value) for value in content or []] if isinstance(content, list | None) else None


def require_same_options(run: Run, config: Mapping[str, Any], may_differ: Sequence[str]) -> None:
    """Raise ConfigError if the folder holds a run of other options than these, apart from those that may differ.

    A run that failed before its first step has made nothing under its options: any may differ.
    """
    if not run.config_file.exists() or not run.has_results:
        return
    if changed := changed_options(run.config, config, ("resume", *may_differ)):
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"resume: {os.path.relpath(run.path)} was started with other options: {changed[0]}{more}; "
            f"go on with {run.resuming} alone, or start a new run without resume"
        )
