"""The commands: `noising NAME ...` and scripts/NAME.py are Hydra applications over conf/NAME.yaml.

What a command adds to Hydra: the overrides are checked before anything is made (noising.composition), every
run gets a folder of its own, `resume=true` finds the folder of the run to continue (noising.folders), and a
mistake of the user's is one line and exit code 2. Neither torch nor Lightning is imported until a job starts.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from noising.cli import folders
from noising.cli import help as help_text
from noising.cli.overrides import Composer, composer
from noising.cli.sweeps import each_choice_once, refuse_ddp_sweep
from noising.config.choices import conf_dir
from noising.config.instantiate import nearest
from noising.errors import UsageError

COMMANDS = {  # name of the command and of its config: the job, what it does
    "train": ("noising.commands.train:train", "train a diffusion model"),
    "evaluate": ("noising.commands.evaluate:evaluate", "measure a trained model: bound, Fréchet distance, ..."),
    "compare": ("noising.commands.compare:compare", "set runs side by side, or measure the difference of two"),
    "benchmark": ("noising.commands.benchmark:benchmark", "measure what a method saves, as ratios in one run"),
    "likelihood": (
        "noising.commands.likelihood:likelihood",
        "the exact likelihood of a trained model's flow, in bits/dim",
    ),
    "sample": ("noising.commands.sample:sample", "draw images from a trained model"),
    "latents": ("noising.commands.latents:latents", "images between two noises, and images to noise and back"),
    "reference": ("noising.commands.reference:reference", "statistics of real images' features, and files of them"),
    "verify": ("noising.commands.verify:verify", "hold the theory's identities against a config"),
    "weightings": ("noising.commands.weightings:weightings", "draw what losses weigh: w(λ) and p(λ) on one axis"),
}
POSITIONAL = {  # what words without "=" are, where a command takes some: an option of a list or of one word
    "compare": "runs=[{}]",
    "benchmark": "benchmark={}",
}
_PATIENCE = 2.0  # seconds that the first rank has to end in, with the same words
Job = Callable[[DictConfig, Path], None]


def train() -> None:
    main("train")


def evaluate() -> None:
    main("evaluate")


def compare() -> None:
    main("compare")


def benchmark() -> None:
    main("benchmark")


def likelihood() -> None:
    main("likelihood")


def sample() -> None:
    main("sample")


def latents() -> None:
    main("latents")


def reference() -> None:
    main("reference")


def verify() -> None:
    main("verify")


def weightings() -> None:
    main("weightings")


def cli() -> None:
    """The installed command: `noising NAME ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        main(name, skip=1)
    elif name in ("--help", "-h", "help"):
        print("usage: noising NAME [key=value ...]; noising NAME --help tells more\n")
        print("\n".join(f"  {command:11} {words}" for command, (_, words) in COMMANDS.items()))
    else:
        right = nearest(name, COMMANDS)
        hint = f"did you mean {right}?" if right else f"choose one of {', '.join(COMMANDS)}"
        _stop(f"{name}: no such command; {hint}")


def main(config_name: str, job: str | None = None, *, skip: int = 0, conf: Path | None = None) -> None:
    """Runs the command of conf/`config_name`.yaml over sys.argv, of which the first `skip` arguments are not
    Hydra's.

    `job` is the dotted place ("module:function") of the function (config, run folder) -> None that does the
    work. Exits with 2 after a mistake of the user's (one line on stderr), with 1 if a job failed.
    """
    task = Task(config_name, job or COMMANDS[config_name][0])
    parser = get_args_parser()
    arguments = parser.parse_intermixed_args(sys.argv[1 + skip :])  # flags between the overrides too
    if arguments.config_path and not arguments.config_path.startswith("pkg://"):
        arguments.config_path = str(Path(arguments.config_path).absolute())
    place = arguments.config_path or str(conf or conf_dir())
    name = arguments.config_name or config_name
    see_current_folder()
    help_text.register()
    shows = arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion
    try:
        if not (shows or arguments.experimental_rerun or folders.is_ddp_child(arguments.overrides)):
            with composer(name, place, arguments.config_dir) as composing:
                if arguments.cfg:
                    arguments.overrides = with_names(config_name, arguments.overrides)
                    composing.compose(arguments.overrides)
                else:
                    before, named = list(arguments.overrides), with_names(config_name, arguments.overrides)
                    arguments.overrides = prepare(composing, named, bool(arguments.multirun), task)
                    # Lightning starts the other ranks with our own command line: they must see the same
                    # overrides.
                    sys.argv = [word for word in sys.argv if word not in before] + arguments.overrides
        with redirect_stdout(Output(sys.stdout)) as output:
            try:
                _run_hydra(arguments, parser, task, place, name)
            finally:
                output.flush()
    except UsageError as error:
        folders.remove_if_empty(task.claimed)
        _stop(str(error))
    if task.exit_code:
        raise SystemExit(task.exit_code)


def with_names(command: str, words: Sequence[str]) -> list[str]:
    """The overrides; where a command takes bare words (two runs to compare), they become the option they stand for."""
    bare = (
        [word for word in words if Path(word).is_dir() or ("=" not in word and not word.startswith("~"))]
        if command in POSITIONAL
        else []
    )
    if not bare:
        return list(words)
    quoted = ("'{}'".format(word.replace("\\", "\\\\").replace("'", "\\'")) for word in bare)
    option = POSITIONAL[command].format(",".join(quoted if "[" in POSITIONAL[command] else bare))
    return [option, *(word for word in words if word not in bare)]


def prepare(composing: Composer, overrides: Sequence[str], multirun: bool, task: Task) -> list[str]:
    """The overrides for Hydra, with the folder to write in, after all checks that need no job."""
    several = any(override.is_sweep_override() for override in composing.parse(overrides))
    config = composing.compose(overrides, multirun=multirun or several)
    composed = list(overrides), multirun or several
    multirun = multirun or config.hydra.mode == RunMode.MULTIRUN
    overrides = folders.resolve_resume(composing, list(overrides), multirun)
    if composed != (overrides, multirun):
        config = composing.compose(overrides, multirun=multirun)
    if multirun:
        folders.refuse_launched_sweep()
        parameters = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        swept = parameters.get("params") or {} if isinstance(parameters, dict) else {}
        presets = [f"{key}={value}" for key, value in swept.items()]
        for run in each_choice_once(composing.parse([*presets, *overrides])):
            one = composing.compose(run)
            composing.check(one, run)
            refuse_ddp_sweep(one)
        overrides = folders.name_jobs_by_what_is_swept(composing.parse(overrides), overrides)
    else:
        composing.check(config, overrides)
    overrides, task.claimed = folders.claim(config, overrides, multirun)
    task.record = folders.hydra_record(overrides)
    return list(overrides)


class Task:
    """What Hydra calls for each job. Picklable, for launchers that run the jobs in other processes."""

    def __init__(self, name: str, job: str) -> None:
        self.__module__ = f"noising.{name}"  # Hydra names the job, and its log file, after the last part
        self.job = job
        self.exit_code = 0
        self.claimed: Path | None = None  # the folder made for this run, removed if nothing comes of it
        self.record: dict[Path, bytes] = {}  # of the options that a run was started with, for one that is continued
        self._process = os.getpid()

    def __call__(self, config: DictConfig) -> None:
        see_current_folder()
        hydra = HydraConfig.get()
        sweeping = hydra.mode == RunMode.MULTIRUN
        try:
            module, _, function = self.job.partition(":")
            job: Job = getattr(importlib.import_module(module), function)
            job(config, Path(hydra.runtime.output_dir))
        except UsageError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc()
            self._fail(f"error: {_which(hydra) if sweeping else ''}{error}", error.exit_code, sweeping, error)
        except Exception as error:
            if not (sweeping and os.getpid() == self._process):
                raise
            self._fail(_which(hydra) + traceback.format_exc(), 1, sweeping, error)

    def _fail(self, message: str, code: int, sweeping: bool, error: Exception) -> None:
        """Prints the message and ends a run with the code; a sweep ends with it after its other jobs."""
        _say(message)
        if sweeping and os.getpid() != self._process:
            raise error  # a launcher's worker: only the exception tells the parent
        self.exit_code = max(self.exit_code, code)
        if not sweeping:
            folders.remove_if_empty(self.claimed)
            for file, content in self.record.items():
                file.write_bytes(content)
            raise SystemExit(code)


class Output:
    """Standard output that may be closed before the work is done: `... | head` has seen enough, the work goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._close()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close()

    def _close(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def _which(hydra: Any) -> str:
    return f"job {hydra.job.num} ({' '.join(hydra.overrides.task)}): "


def see_current_folder() -> None:
    """`_target_: mine.Mine` finds mine.py in the current folder, under an installed command too."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _stop(message: str) -> NoReturn:
    _say(f"error: {' '.join(message.split())}")
    raise SystemExit(2)


def _say(message: str) -> None:
    """On stderr, once a node and not once a rank: another rank says only what has not ended the first as well."""
    rank = os.environ.get("LOCAL_RANK", "0")
    if rank != "0":
        from noising.training.safety.ranks import main_process_ends  # here: it brings torch

        if main_process_ends(_PATIENCE):
            return
        message = f"rank {rank}: {message}"
    print(message, file=sys.stderr, flush=True)
