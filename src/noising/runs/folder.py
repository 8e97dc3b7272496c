"""A run's folder: the names of its files, its config, its summary and its status.

Only rank 0 may call the methods that write. Every file appears whole or not at all. Light to import: no torch.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml  # type: ignore[import-untyped]

from noising.config.moved import with_current_names
from noising.config.secrets import masked
from noising.config.words import shell_word
from noising.errors import ConfigError, UsageError
from noising.runs.environment import environment
from noising.runs.sizes import require_written_out

log = logging.getLogger(__name__)


class Run:
    """The folder of one run. `start` marks it as running; the properties can be read at any time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.environment_file = self.path / "environment.json"
        self.summary_file = self.path / "summary.json"
        self.metrics = self.path / "metrics.csv"
        self.metrics_record = self.path / "metrics.jsonl"
        self.last_checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.best_checkpoint = self.path / "checkpoints" / "best.ckpt"
        self.samples = self.path / "samples"
        self.samples_image = self.path / "samples.png"
        self.neighbours_image = self.path / "neighbours.png"
        self.reverse_process = self.path / "reverse_process.gif"
        self.figures = self.path / "figures"
        self.bound_by_step_figure = self.figures / "bound_by_step.png"
        self.bound_by_log_snr_figure = self.figures / "bound_by_log_snr.png"
        self.rate_distortion_figure = self.figures / "rate_distortion.png"
        self.learning_curves = self.figures / "learning_curves.png"
        self.bound_by_step = self.path / "bound_by_step.csv"
        self.unwritten: dict[Path, str] = {}
        """The files that could not be written, or not as they should be now, and why."""
        self._held: dict[str, Any] | None = None  # the summary, while it cannot be written

    def samples_at(self, step: int) -> Path:
        """The grid of samples drawn after `step` optimizer steps."""
        return self.samples / f"step_{step:06d}.png"

    @property
    def resuming(self) -> str:
        """The words that make the command go on with this run, quoted for a shell; for a job, with its sweep."""
        sweep = (self.path.parent / "multirun.yaml").exists()
        path = os.path.relpath(self.path.parent if sweep else self.path)
        return ("-m " if sweep else "") + shell_word("resume", path)

    @contextmanager
    def writing(self, file: Path, final: bool = False) -> Iterator[None]:
        """Let the work go on where a file cannot be written (the disk is full): a line in the log, and `unwritten`.

        final: what is not written now never will be, so that the file stays among the unwritten.
        """
        try:
            yield
        except OSError as error:
            if file not in self.unwritten:
                log.warning("%s cannot be written (%s); the work goes on", file, error.strerror or error)
            self.unwritten[file] = error.strerror or str(error)
        else:
            if not final:
                self.unwritten.pop(file, None)

    def start(self, config: Mapping[str, Any]) -> None:
        """Write the config, the environment and the status "running"; numbers of a resumed run stay in its summary."""
        self.path.mkdir(parents=True, exist_ok=True)
        summary = {**self.summary, "status": "running"}
        for reason in ("ended", "error"):  # why it ended early, or failed, before it went on
            summary.pop(reason, None)
        _write(self.config_file, yaml.safe_dump(masked(dict(config)), sort_keys=False, allow_unicode=True))
        _write_json(self.environment_file, environment())
        _write_json(self.summary_file, summary)

    def update(self, facts: Mapping[str, Any], **entries: Mapping[str, Any]) -> None:
        """Merge numbers and other facts into the summary, and mappings into its entries `cards` and `declared`.

        A summary that cannot be written is held, and written with the next change.
        """
        summary = self._summary_so_far()
        merged = {entry: {**summary.get(entry, {}), **added} for entry, added in entries.items() if added}
        content = self._held = {**summary, **facts, **merged}
        with self.writing(self.summary_file):
            _write_json(self.summary_file, content)
            self._held = None

    def finish(self, status: str, numbers: Mapping[str, Any]) -> None:
        """Write the final status (finished, failed or interrupted), and numbers."""
        self.update({**numbers, "status": status})

    def _summary_so_far(self) -> dict[str, Any]:
        try:
            return self.summary
        except ConfigError as error:  # damaged in the course of the run
            log.warning("%s; the run goes on, and the numbers in that file are lost", error)
            return {"status": "running"}

    @property
    def status(self) -> str:
        """One of running, finished, failed, interrupted; "none" before the start. A killed run stays "running"."""
        return str(self.summary.get("status", "none"))

    @property
    def has_results(self) -> bool:
        """Whether the folder holds more than a run leaves that has failed before its first step."""
        begun = (self.config_file, self.environment_file, self.summary_file)
        theirs = (".hydra", "tensorboard", "wandb")  # written before the first step as well
        for file in self.path.rglob("*"):
            inside = file.relative_to(self.path).parts
            if inside[0] in theirs or inside[0].startswith(".") or file in begun or file.suffix == ".log":
                continue
            if file.is_file() and file.stat().st_size:
                return True
        return any("/" in name for name in self.summary)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json, if any; numbers not finite are None. Raises ConfigError if it is damaged."""
        if self._held is not None:
            return dict(_as_json(self._held))
        try:
            return _read(self.summary_file, _parse_summary, _ADVICE)
        except (FileNotFoundError, NotADirectoryError):
            return {}

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config the run was started with. Raises ConfigError if none can be read."""
        try:
            return _read(self.config_file, _parse_config, ": restore it, or start a new run without resume")
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self.path} holds no run: there is no config.yaml in it") from None


def _parse_config(text: str) -> Any:
    content = yaml.safe_load(text)
    require_written_out(content)
    return content


def run_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the run whose folder, folder of checkpoints or last checkpoint this is."""
    given = Path(path)
    inner = given.parent if given.name == "last.ckpt" else given
    of_run = inner.name == "checkpoints" and Run(inner.parent).config_file.is_file()
    return inner.parent if of_run else given


_ADVICE = ": delete it and start the run again with resume=true"


@contextmanager
def reading_summary(run: Run) -> Iterator[None]:
    """Turn what is raised where an entry of the summary is not what it was written as into ConfigError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise ConfigError(f"{run.summary_file} is damaged{_ADVICE}") from error


def _parse_summary(text: str) -> Any:
    """The summary; None if an entry that is read everywhere is of another kind."""
    content = json.loads(text)
    if not isinstance(content, dict):
        return None
    for name, value in content.items():
        if name in ("cards", "declared"):
            whole = isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())
        elif name in ("status", "ended", "error"):
            whole = isinstance(value, str)
        else:
            whole = "/" not in name or isinstance(value, int | float | dict | None)
        if not whole:
            return None
    return content


def _read(path: Path, parse: Callable[[str], Any], advice: str = "") -> dict[str, Any]:
    try:
        # a pipe would be waited for
        content = parse(path.read_text(encoding="utf-8")) if path.is_file() or not path.exists() else None
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, yaml.YAMLError):  # not JSON, not YAML, not UTF-8
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged{advice}")
    return dict(with_current_names(content))  # a summary's cards hold nodes of a config, too


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[IO[bytes]]:
    """Give a file to write, which takes the place of `path` when all of it is written, never before.

    The temporary file lies beside the target: only within one file system is a rename atomic. sync: wait until it is on
    the disk, so that a power cut leaves the one or the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is overwritten
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # which would hide the first error
            temporary.unlink(missing_ok=True)
        raise
    if not sync:
        return
    with suppress(OSError):  # bring the rename to the disk; a system that cannot sync folders needs no such call
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(_as_json(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _as_json(content: Mapping[str, Any]) -> Any:
    """The content as JSON has it: tensors and arrays of one number as the number, nan and infinities as null."""
    from pydantic_core import to_jsonable_python  # here: --help needs no pydantic

    return to_jsonable_python(
        content, inf_nan_mode="null", fallback=lambda value: value.item() if hasattr(value, "item") else str(value)
    )
