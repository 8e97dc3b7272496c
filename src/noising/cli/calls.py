"""A command called from Python: it runs in this process, which is afterwards as it was, and its errors are raised."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from noising.cli import folders
from noising.cli.commands import COMMANDS
from noising.cli.help import register_group_list
from noising.cli.launch import Task, launch, see_current_folder
from noising.cli.main import prepare
from noising.cli.overrides import Composer, composer, without_null_groups
from noising.cli.paths import with_paths
from noising.cli.sweeps import runs_program_again
from noising.config.choices import conf_dir
from noising.errors import ConfigError, UsageError
from noising.runs.trust import allowing

_COMPOSES = threading.Lock()
"""Held while Hydra composes, whose state is that of the process."""


def call(command: str, overrides: Sequence[str], allow: str = "", config_dir: str | Path | None = None) -> Path:
    """Run a command over its overrides, and return the folder of its run.

    allow: names that a stranger's file may use, as `allow=` of the command line; config_dir: a folder of your own
    configs. Raises UsageError for a mistake, and whatever the work itself raises; KeyboardInterrupt where it was
    stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("a command must run in the main thread, which handles signals: start a process for it")
    task = _Call(command, COMMANDS[command].job)
    with process_as_before(), allowing(allow), _composing(command, config_dir) as composing:
        try:
            config = prepare(task, composing, _words(composing, overrides), multirun=False)
            if runs_program_again(config):
                raise UsageError(
                    f"trainer.devices={config.trainer.devices}: from Python, several devices need "
                    "trainer.strategy=ddp_spawn (ddp_notebook in a notebook): add it, or use the command line"
                )
            folder = Path(str(config.hydra.run.dir))
            with _logging_to(folder / f"{command}.log"):
                launch(task, config, sets_logging=False)
        except SystemExit as stop:  # the commands' own end of what was interrupted
            raise KeyboardInterrupt from stop
        except UsageError:
            folders.remove_if_empty(task.claimed)
            raise
    if task.error is not None:
        raise task.error
    return folder


def composed(command: str, overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """The config of a command, composed and checked, without a run. Raises UsageError for a mistake."""
    with _COMPOSES, process_as_before(), _composing(command, config_dir) as composing:
        words = composing.with_parts_anew(_words(composing, overrides))
        config = composing.compose(words)
        composing.check(config, words)
        return OmegaConf.masked_copy(config, [name for name in map(str, config) if name != "hydra"])


class _Call(Task):
    """A task whose error is for the caller to raise."""

    error: Exception | None = None

    def _fail(self, message: str, code: int, sweeping: bool, error: Exception) -> None:
        self.error = error
        self.undo()


@contextmanager
def _composing(command: str, config_dir: str | Path | None) -> Iterator[Composer]:
    if not isinstance(config_dir, str | Path | None):
        raise ConfigError(f"config_dir={config_dir}: expected a folder's path")
    see_current_folder()
    register_group_list()
    try:
        with composer(command, str(conf_dir()), None if config_dir is None else str(config_dir)) as composing:
            yield composing
    except HydraException as error:
        raise ConfigError(str(error)) from error


def _words(composing: Composer, overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra's words; ConfigError for what is none, and for several values of an option."""
    for word in overrides:
        if not isinstance(word, str) or word.startswith("-") or ("=" not in word and not word.startswith("~")):
            raise ConfigError(f"{word!r}: expected an option as on the command line: 'key=value', in quotes")
        if word.startswith("allow="):
            raise ConfigError(f"{word}: in a call from Python, use the argument allow={word.removeprefix('allow=')!r}")
    words = without_null_groups(with_paths(overrides, multirun=False))
    for override in composing.parse(words):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: a call from Python takes one value; call it once for each")
    return words


@contextmanager
def process_as_before() -> Iterator[None]:
    """Within it a command may do what it does alone in a process; afterwards the process is as it was.

    That is: random generators, threads, handlers of logs and signals, warnings, sys.argv, sys.path, the environment and
    Hydra's global state.
    """
    import torch  # here: the command line's help needs none of it

    from noising.randomness import generators_as_before

    with ExitStack() as after:

        def restored(restore: Callable[..., object], *state: object) -> None:
            after.callback(restore, *state)

        after.enter_context(generators_as_before())
        restored(torch.set_num_threads, torch.get_num_threads())
        restored(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        after.enter_context(torch.inference_mode(False))
        after.enter_context(torch.enable_grad())
        restored(sys.argv.__setitem__, slice(None), sys.argv[:])
        restored(sys.path.__setitem__, slice(None), sys.path[:])
        restored(_set_environment, dict(os.environ))
        for logger in (logging.getLogger(), *_loggers()):
            restored(_set_logger, logger, logger.level, logger.handlers[:], logger.filters[:])
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                restored(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
        after.enter_context(warnings.catch_warnings())
        restored(_set_hydra, {kind: dict(one.__dict__) for kind, one in Singleton._instances.items()})
        GlobalHydra.instance().clear()
        yield


def _set_environment(variables: dict[str, str]) -> None:
    for name in {*os.environ} - {*variables}:
        del os.environ[name]
    os.environ.update(variables)


def _loggers() -> list[logging.Logger]:
    return [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]


def _set_logger(logger: logging.Logger, level: int, handlers: list[logging.Handler], filters: list[object]) -> None:
    logger.setLevel(level)
    logger.handlers[:], logger.filters[:] = handlers, filters  # type: ignore[assignment]


def _set_hydra(states: dict[type, dict[str, object]]) -> None:
    """Give Hydra's singletons their attributes back; those that came later lose the config that they hold."""
    for kind, one in Singleton._instances.items():
        if kind in states:
            attributes: dict[str, object] = one.__dict__  # type: ignore[assignment]
            attributes.clear()
            attributes.update(states[kind])
    if GlobalHydra not in states:
        GlobalHydra.instance().clear()


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Within it, what is logged goes to the file, and its bare words to standard output where nobody handles logs."""
    root = logging.getLogger()
    handlers: list[logging.Handler] = [] if root.handlers else [logging.StreamHandler(sys.stdout)]
    with suppress(OSError):
        recorded = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace", delay=True)
        recorded.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
        handlers.append(recorded)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
