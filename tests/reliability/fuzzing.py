"""Wrong options, generated from conf/ itself, and what a command makes of them until its work would start.

A case is a command, overrides that work, and one more that may not. The value of each option is tried by the kind of
its default; the whole of it in one process, where what is the same in many cases (a composed config, a data set, a
checkpoint) is made once.
"""

from __future__ import annotations

import contextlib
import functools
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from noising.cli import help as help_text
from noising.cli.overrides import Composer, composer
from noising.commands.loggers import open_results
from noising.config.choices import conf_dir
from noising.config.instantiate import make
from noising.config.theory import build_recipe
from noising.errors import UsageError
from noising.experiment import Experiment
from noising.runs.folder import Run
from noising.runs.status import run_status

CONF = conf_dir()
SECONDS = 5
"""Of one case: a mistake is told at once."""
MEMORY = 3 * 2**30
"""That a case may ask for beyond what the process has: an option must not take the machine down."""
BIG = (str(10**9), str(10**30), "1e308", "-1e308")
NUMBERS = ("-1", "0", "0.5", "true", "word", "''", "null", "[]", "[1,nan]", "{a:1}", "nan", "inf", "-inf", *BIG)
WORDS = ("-1", "0.5", "true", "word", "''", "null", "[]", "{a:1}", "nan", BIG[1], "a/b", "'two words'")
LISTS = ("-1", "word", "''", "null", "[]", "[-1]", "[0,0]", "[word]", "[nan,inf]", "[null]", "{a:1}", f"[{BIG[1]}]")
NOT_LISTED = "hydra"


class Case(NamedTuple):
    """One wrong (or merely odd) override on top of others that work."""

    base: tuple[str, ...]
    override: str

    @property
    def key(self) -> str:
        return self.override.lstrip("+~").partition("=")[0]

    def __str__(self) -> str:
        return " ".join([*self.base, self.override])


def options_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, default) of every option, those that directives like `_target_` are not; a list is one option."""
    for name, value in config.items():
        if str(name).startswith("_") or name in ("defaults", NOT_LISTED):
            continue
        if isinstance(value, dict):
            yield from options_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def values_for(default: Any) -> Sequence[str]:
    """Values that an option of this default may not take."""
    if isinstance(default, list):
        return LISTS
    return WORDS if isinstance(default, str | bool) else NUMBERS


def misspelt(name: str) -> str:
    """The name with two letters in the wrong order, or one too many."""
    swapped = name[:-2] + name[:-3:-1]
    return swapped if swapped != name else name + "x"


def groups() -> dict[str, list[str]]:
    """The choices of each group in conf/."""
    folders = sorted(folder for folder in CONF.iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def read(*path: str) -> dict[str, Any]:
    """The options of conf/PATH.yaml, as they are written."""
    return yaml.safe_load((CONF.joinpath(*path).with_suffix(".yaml")).read_text(encoding="utf-8")) or {}


def value_cases(base: Sequence[str], options: Iterator[tuple[str, Any]]) -> Iterator[Case]:
    """Every option with every value of its kind, and under a name that is none."""
    for path, default in options:
        for value in values_for(default):
            yield Case(tuple(base), f"{path}={value}")
        yield Case(tuple(base), f"~{path}")
        parent, dot, name = path.rpartition(".")
        if parent:
            yield Case(tuple(base), f"+{parent}{dot}{misspelt(name)}=1")


class _CachingComposer(Composer):
    """Composes the same overrides once; who changes a config takes a copy."""

    @classmethod
    def of(cls, composing: Composer) -> _CachingComposer:
        return cls(composing.command, composing.command)

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._composed: dict[Any, DictConfig] = {}
        self.options = functools.cache(super().options)  # type: ignore[method-assign]
        self.groups = functools.cache(super().groups)  # type: ignore[method-assign]
        self.based_on = functools.cache(self.compose)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        key = tuple(overrides)
        if key not in self._composed:
            with composer(self.command, str(CONF)):  # each of several commands has its own
                self._composed[key] = super()._compose(overrides)
        return self._composed[key]


class Command:
    """A command's checks and its job, until the work would start."""

    def __init__(self, name: str, composing: _CachingComposer, start: Callable[[DictConfig], None]) -> None:
        self.name = name
        self.composing = composing
        self.start = start

    def config(self, case: Case) -> DictConfig:
        """What Hydra would compose, by its own parser: most overrides change one value of what is composed already."""
        config = self.composing.based_on(case.base).copy()
        (parsed,) = self.composing.parse([case.override])
        plain = not (parsed.is_delete() or parsed.is_sweep_override() or self.composing.options(parsed.key_or_group))
        added = parsed.is_add() or parsed.is_force_add()
        try:
            if not plain:
                return self.composing.compose([*case.base, case.override]).copy()
            with open_dict(config) if added else contextlib.nullcontext():
                OmegaConf.update(config, parsed.key_or_group, parsed.value(), merge=True, force_add=added)
        except (OmegaConfBaseException, ValueError):
            return self.composing.compose([*case.base, case.override]).copy()
        config.hydra.overrides.task = [*case.base, case.override]
        return config

    def run(self, case: Case) -> None:
        """Raises whatever the command would."""
        before = HydraConfig.instance().cfg
        try:
            config = self.config(case)
            self.composing.check(config, [*case.base, case.override])
        finally:
            HydraConfig.instance().cfg = before
        with open_dict(config):
            del config["hydra"]  # as Hydra hands it to the job
        self.start(config)


def command(name: str, start: Callable[[DictConfig], None]) -> Command:
    """The command of conf/NAME.yaml; start: its job, up to its work."""
    help_text.register_group_list()
    with composer(name, str(CONF), None) as composing:
        return Command(name, _CachingComposer.of(composing), start)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """TimeoutError after some seconds; no more than some memory."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def complaint(running: Command, case: Case) -> str | None:
    """What is wrong with how a command takes a case; None if it starts, or says why not in a line that names it."""
    began = time.perf_counter()
    try:
        with limited():
            running.run(case)
    except UsageError as error:
        return wrong_line(str(error), case)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]} ({time.perf_counter() - began:.1f} s)"
    return None


def wrong_line(line: str, case: Case) -> str | None:
    """What is wrong with the line that a case got; it must name the option, its group, or the value."""
    names = {*case.key.split("."), *case.key.split("@"), case.override.partition("=")[2].strip("[]'")} - {""}
    if "\n" in line:
        return f"more than one line: {line!r}"
    if not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", line) for name in names):
        return f"names neither the option nor the value: {line}"
    return None


_COSTLY = ("torchvision", "metrics.quality")
"""Parts of the names of what is made, and taken no further: it reads files that are not here, or fits a network."""


@functools.cache
def _data(node: str) -> Any:
    config = OmegaConf.create(node)
    assert isinstance(config, DictConfig)
    return Experiment(config).data


def start_training(config: DictConfig, folder: Path) -> None:
    """What `train` does before Trainer.fit; what would be downloaded or fitted is made, no more."""
    build_recipe(config, 64, 256)
    for group in ("metrics", "data"):
        if any(words in str(OmegaConf.select(config, f"{group}._target_")) for words in _COSTLY):
            make(config[group], group, object)
            if group == "data":
                return
            config[group] = None
    data = _data(OmegaConf.to_yaml(OmegaConf.create({"data": config.get("data")})))
    results = open_results(Run(folder), config, "train")
    experiment = Experiment(config, data)
    assert experiment.module
    experiment.trainer(results, experiment.callbacks(results))


class StartsError(Exception):
    """The work would start."""


def start_job(job: Callable[[DictConfig, Path], None], config: DictConfig, folder: Path) -> None:
    """A job until it writes down that it has begun."""
    begins = mock.Mock(side_effect=StartsError)
    with mock.patch.dict(job.__globals__, {run_status.__name__: begins}), contextlib.suppress(StartsError):
        job(config, folder)


SHAPES = ("null", "''", "3", "[]", "{a:1}", "{_target_:nowhere.Nothing}")
"""What a group may be set to in place of a choice."""


def group_cases(base: Sequence[str], group: str, choice: str) -> Iterator[Case]:
    """A group that is no choice, misspelt, taken away; and its choice misspelt."""
    for shape in SHAPES:
        yield Case(tuple(base), f"{group}={shape}")
    yield Case(tuple(base), f"~{group}")
    yield Case(tuple(base), f"{misspelt(group)}={choice}")
    yield Case(tuple(base), f"{group}={misspelt(choice)}")
