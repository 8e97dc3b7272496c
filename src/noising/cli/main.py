"""The command line: `noising NAME ...` and scripts/NAME.py run the function of a command on conf/NAME.yaml.

Hydra composes the words and they are checked before anything is made (cli.overrides), every run gets a folder of its
own, `resume=true` finds the folder of the run to go on with (cli.folders), and a mistake of the user's is one line and
exit code 2. What only shows something (--help, --cfg, --info) is handed to Hydra as it is.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from noising.cli import folders
from noising.cli.commands import COMMANDS
from noising.cli.help import register_group_list
from noising.cli.launch import NO_ROOM, Task, launch, say, see_current_folder, sweep
from noising.cli.overrides import Composer, composer, each_choice_once, without_null_groups
from noising.cli.paths import is_path, with_paths
from noising.cli.streams import standard_streams
from noising.cli.sweeps import prepare_jobs, presets, refuse_ddp_sweep
from noising.config.choices import conf_dir
from noising.config.instantiate import nearest
from noising.config.words import quoted
from noising.errors import ConfigError, UsageError, in_one_line, printable
from noising.runs.status import INTERRUPTED
from noising.runs.trust import allowing


def cli() -> None:
    """The installed command: `noising NAME ...`."""
    name, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in COMMANDS:
        main(name, words)
    else:
        with standard_streams():
            _list_commands(name)


def _list_commands(name: str) -> None:
    """Print the commands, or stop with the one that was probably meant."""
    if name == "--version":
        print(f"noising {version('noising')}")
    elif name in ("--help", "-h", "help"):
        print("usage: noising NAME [key=value ...]; noising NAME --help tells more\n")
        print("\n".join(f"  {name:11} {command.help}" for name, command in COMMANDS.items()))
    else:
        right = nearest(name, COMMANDS)
        hint = f"did you mean {right}?" if right else f"choose one of {', '.join(COMMANDS)}"
        _stop(f"{name}: no such command; {hint}")


def main(name: str, words: Sequence[str] | None = None, conf: Path | None = None) -> None:
    """Run a command over its words, by default those of sys.argv.

    conf: the folder of its config, by default the project's. Exits with 2 after a mistake of the user's (one line on
    stderr), with 1 if a job failed.
    """
    logging.raiseExceptions = False  # a log that cannot be written is no reason to write tracebacks beside it
    with standard_streams():
        _main(name, sys.argv[1:] if words is None else list(words), conf or conf_dir())


def _main(name: str, words: list[str], conf: Path) -> None:
    see_current_folder()
    register_group_list()
    task = Task(name, COMMANDS[name].job)
    words, allowed = _without_allowed(words)
    try:
        with allowing(allowed):
            _run(task, name, words, conf)
    except (UsageError, HydraException) as error:
        folders.remove_if_empty(task.claimed)
        _stop(str(error))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _stop(f"{error.filename or 'the folder of the run'} cannot be written ({error.strerror}): make room first")
    except KeyboardInterrupt:  # before the job had begun to keep its own state
        folders.remove_if_empty(task.claimed)
        say("interrupted")
        raise SystemExit(INTERRUPTED) from None
    if task.exit_code:
        raise SystemExit(task.exit_code)


def _run(task: Task, name: str, words: list[str], conf: Path) -> None:
    flags = _Flags().parse_intermixed_args(words)  # flags stand between the overrides too
    config_name, place = flags.config_name or name, flags.config_path or str(conf)
    multirun = flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides
    overrides = without_null_groups(with_paths(with_names(name, flags.overrides), multirun))
    if not any(getattr(flags, shown) for shown in _SHOWING):
        with composer(name, place, flags.config_dir, config_name) as composing:
            if (as_first := folders.of_child(flags.overrides)) is not None:
                config = composing.compose(as_first)
                composing.check(config, as_first)
                launch(task, config)
                return
            config = prepare(task, composing, overrides, bool(flags.multirun))
            if config.hydra.mode == RunMode.MULTIRUN:
                sweep(task, config)
            else:
                launch(task, config)
        return
    if flags.multirun and (shows := next((flag for flag in ("cfg", "info") if getattr(flags, flag)), None)):
        raise UsageError(f"--{shows} shows a single run: leave out -m, and give each option one value")
    if flags.cfg:
        with composer(name, place, flags.config_dir, config_name) as composing:
            overrides = composing.with_parts_anew(overrides)
            if several := _swept(composing.parse(overrides)):
                raise ConfigError(f"{several[0]}: several values; --cfg shows one run: give one, or write key=[1,2]")
            composing.compose(overrides)  # our words for a mistake, before Hydra's
    _show(name, config_name, place, flags, overrides)


def prepare(task: Task, composing: Composer, words: Sequence[str], multirun: bool) -> DictConfig:
    """The config of the run, or of the sweep, after all checks that need no job; its folder is made."""
    overrides, folder, newest = folders.resumed(words, multirun, lambda: composing.compose([]))
    overrides = composing.with_parts_anew(overrides)
    parsed = composing.parse(overrides)
    several = _swept(parsed)
    first = each_choice_once(parsed)[0] if several else overrides
    try:
        config = composing.compose([*first, "hydra.mode=MULTIRUN"] if multirun else first)
    except ConfigError as error:
        if folder is None or "no such choice" not in str(error):
            raise
        raise ConfigError(f"{error}; if the run was started with --config-dir, give it again") from error
    if config.hydra.mode == RunMode.MULTIRUN and not multirun:  # the config's own wish
        return prepare(task, composing, words, True)
    if several and not multirun:
        raise ConfigError(f"{several[0]}: several values; add -m to sweep over them, or write a list as key=[1,2]")
    if newest and (folder := folders.newest(config, overrides, multirun)) is None:
        overrides = folders.begin_anew(config, overrides)
    if multirun:
        folders.refuse_launched_sweep()
        for run in each_choice_once(composing.parse([*presets(config), *overrides])):
            one = composing.compose(run)
            composing.check(one, run)
            refuse_ddp_sweep(one)
    else:
        composing.check(config, overrides)
    task.claimed = folders.claim(config, overrides, multirun, folder)
    if multirun:
        prepare_jobs(config, composing.parse(overrides))
    else:
        task.before = folders.backup(config)
    return config


def _swept(parsed: Sequence[Override]) -> list[str]:
    """The overrides with several values, as the user may write them."""
    return [str(override.input_line).lstrip("+") for override in parsed if override.is_sweep_override()]


def _without_allowed(words: Sequence[str]) -> tuple[list[str], str]:
    """The words without `allow=NAME,NAME`, and those names: no record of a run holds them, which would allow itself."""
    given = [word for word in words if word.startswith("allow=")]
    return [word for word in words if word not in given], ",".join(word.removeprefix("allow=") for word in given)


def with_names(command: str, words: Sequence[str]) -> list[str]:
    """The overrides; where a command takes bare words (two runs to compare), they become the option they stand for."""
    option = COMMANDS[command].positional
    paths = "[" in option
    bare = [word for word in words if ("=" not in word and not word.startswith("~")) or (paths and is_path(word))]
    if not option or not bare:
        return list(words)
    value = ",".join(map(quoted, bare) if paths else bare)
    return [option.format(value), *(word for word in words if word not in bare)]


_SHOWING = ("help", "hydra_help", "version", "cfg", "info", "shell_completion")


class _Flags(argparse.ArgumentParser):
    """Hydra's flags, and the overrides."""

    SWITCHES = (
        *(("--help", "-h"), ("--hydra-help",), ("--version",), ("--resolve",)),
        *(("--run", "-r"), ("--multirun", "-m"), ("--shell-completion", "-sc")),
    )
    # not Hydra's --experimental-rerun, which unpickles a file of a run's folder
    VALUES = (("--package", "-p"), ("--config-dir", "-cd"), ("--config-name", "-cn"), ("--config-path", "-cp"))

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for names in self.SWITCHES:
            self.add_argument(*names, action="store_true")
        for names in self.VALUES:
            self.add_argument(*names, type=os.path.expanduser)  # no shell does in --config-dir=~/conf
        one = self.add_mutually_exclusive_group()
        one.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
        one.add_argument("--info", "-i", nargs="?", const="all")
        self.add_argument("overrides", nargs="*")

    def error(self, message: str) -> NoReturn:
        """One line, as for any other mistake."""
        raise UsageError(f"{message}; see --hydra-help")


def _show(name: str, config_name: str, place: str, flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Hydra's own output for the flags that only show something."""

    def job(config: DictConfig) -> None:
        """Nothing is run."""

    job.__module__ = f"noising.{name}"  # Hydra names the job after the last part
    words = [f"--{flag.replace('_', '-')}" for flag, value in vars(flags).items() if value is True and flag != "run"]
    for flag in ("cfg", "package", "info", "config_dir"):
        if (value := getattr(flags, flag)) is not None:
            words += [f"--{flag.replace('_', '-')}", value]
    with _argv([*words, *overrides]):
        path = place if place.startswith("pkg://") else str(Path(place).absolute())
        hydra.main(version_base="1.3", config_path=path, config_name=config_name)(job)()


@contextmanager
def _argv(words: Sequence[str]) -> Iterator[None]:
    """Within it these are the words of the command line, which is all that hydra.main reads."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        yield
    finally:
        sys.argv = before


def _stop(message: str) -> NoReturn:
    say(f"error: {printable(in_one_line(message))}")
    raise SystemExit(2)
