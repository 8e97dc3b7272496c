"""Starting what was composed: one run, or the jobs of a sweep, by Hydra's launchers and sweepers."""

import errno
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from noising.cli import folders
from noising.config.instantiate import make
from noising.errors import UsageError, in_one_line, printable
from noising.runs.folder import Run
from noising.runs.status import record_failure

_SECONDS_FOR_RANK_0 = 2.0
"""Grace period for the first rank to end with the same message, before another rank prints it."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a disk that takes no more."""
Job = Callable[[DictConfig, Path], None]


class Task:
    """The function that Hydra calls for each job. Picklable, for launchers that run the jobs in other processes."""

    def __init__(self, command: str, job: str) -> None:
        """job: "module:function" of the function (config, run folder) -> None that does the work."""
        self.command, self.job = command, job
        self.exit_code = 0
        self.claimed: Path | None = None
        """The folder made for this run, removed if nothing comes of it."""
        self.before: dict[Path, bytes] = {}
        """The record of its options that a run that goes on had, put back if it is refused."""
        self._process = os.getpid()

    def __call__(self, config: DictConfig) -> None:
        see_current_folder()
        _log_in_utf8()
        hydra = HydraConfig.get()
        sweeping = hydra.mode == RunMode.MULTIRUN
        which = f"job {hydra.job.num} ({' '.join(hydra.overrides.task)}): " if sweeping else ""
        try:
            module, _, function = self.job.partition(":")
            job: Job = getattr(importlib.import_module(module), function)
            if sweeping:  # a sweeper may draw values that were not there to be checked before its first job
                from noising.config.options import check_options  # here: --help needs no pydantic

                plain: Any = OmegaConf.to_container(config, resolve=True)
                for option, value in check_options(self.command, plain).items():
                    OmegaConf.update(config, option, value)
            job(config, Path(hydra.runtime.output_dir))
        except UsageError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc()
            self._fail(f"error: {which}{error}", error.exit_code, sweeping, error)
        except ModuleNotFoundError as error:  # of what an option asks for and no dependency brings
            self._fail(f"error: {which}{in_one_line(str(error))}", 2, sweeping, error)
        except OSError as error:
            if error.errno not in NO_ROOM:
                self._fail(which + traceback.format_exc().rstrip(), 1, sweeping, error)
                return
            file = error.filename or f"a file of {os.path.relpath(hydra.runtime.output_dir)}"
            line = f"error: {which}{file} cannot be written ({error.strerror}): make room, and run it again"
            self._fail(line, 1, sweeping, error)
        except Exception as error:
            self._fail(which + traceback.format_exc().rstrip(), 1, sweeping, error)

    def _fail(self, message: str, code: int, sweeping: bool, error: Exception) -> None:
        """Print the message and end a run with the code; a sweep ends with it after its other jobs."""
        say(message)
        if sweeping:
            record_failure(Run(HydraConfig.get().runtime.output_dir), error)
        if sweeping and os.getpid() != self._process:
            raise error  # a launcher's worker: only the exception tells the parent
        self.exit_code = max(self.exit_code, code)
        if not sweeping:
            self.undo()
            raise SystemExit(code)

    def undo(self) -> None:
        """Remove the folder of a run that came to nothing, and bring back the record of one that would not go on."""
        folders.remove_if_empty(self.claimed)
        with suppress(OSError):  # of a full disk, which the message is about
            for file, content in self.before.items():
                file.write_bytes(content)


def launch(task: Task, config: DictConfig, sets_logging: bool = True) -> None:
    """One run in the folder that hydra.run.dir names; sets_logging: whether Hydra replaces the log's handlers."""
    config.hydra.mode = RunMode.RUN
    callbacks = _Callbacks(config)
    callbacks.on_run_start(config=config, config_name=config.hydra.job.config_name)
    returned = run_job(task, config, "hydra.run.dir", None, _context(callbacks), sets_logging)
    callbacks.on_run_end(config=config, config_name=config.hydra.job.config_name, job_return=returned)


def sweep(task: Task, config: DictConfig) -> None:
    """The jobs of the sweeper that the config names, over hydra.overrides.task."""
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    callbacks = _Callbacks(config)
    callbacks.on_multirun_start(config=config, config_name=config.hydra.job.config_name)
    sweeper = Plugins.instance().instantiate_sweeper(
        config=config, hydra_context=_context(callbacks), task_function=task
    )
    sweeper.sweep([str(word) for word in config.hydra.overrides.task])
    callbacks.on_multirun_end(config=config, config_name=config.hydra.job.config_name)


def _context(callbacks: Any) -> HydraContext:
    return HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)


class _Callbacks:
    """The config's `hydra.callbacks`; what one of them raises is a warning, since the work goes on without it."""

    def __init__(self, config: DictConfig) -> None:
        nodes = (config.hydra.callbacks or {}).items()
        self._callbacks = [make(node, f"hydra.callbacks.{name}", object) for name, node in nodes if node is not None]

    def __getattr__(self, event: str) -> Callable[..., None]:
        if not event.startswith("on_"):  # pickle's own questions
            raise AttributeError(event)

        def notify(**facts: Any) -> None:
            for callback in self._callbacks:
                try:
                    getattr(callback, event)(**facts)
                except Exception as error:
                    name = f"{type(callback).__name__}.{event}"
                    warnings.warn(f"Callback {name} raised {type(error).__name__}: {error}", stacklevel=2)

        return notify


def _log_in_utf8() -> None:
    """Hydra opens the log's file in the encoding of the locale, which may lack a letter."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            handler.stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def see_current_folder() -> None:
    """`_target_: mine.Mine` finds mine.py in the current folder, under an installed command too."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def say(message: str) -> None:
    """On stderr, once a node and not once a rank: another rank says only what has not ended the first as well."""
    rank = os.environ.get("LOCAL_RANK", "0")
    if rank != "0":
        from noising.training.safety.ranks import main_process_ends  # here: it brings torch

        if main_process_ends(_SECONDS_FOR_RANK_0):
            return
        message = f"rank {rank}: {message}"
    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr, flush=True)
