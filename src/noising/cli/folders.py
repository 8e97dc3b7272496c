"""The folder that a run or a sweep writes in: a new one, or with `resume` that of the run that is continued."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from noising.cli.commands import COMMANDS
from noising.cli.paths import NO, YES, with_paths
from noising.cli.records import require_own_files, require_trusted_overrides
from noising.config.words import quoted, shell_word, unquoted
from noising.errors import ConfigError, UsageError, printable
from noising.runs.folder import Run, run_folder
from noising.runs.resume import find_resumable, find_sweep, read_overrides
from noising.runs.rows import flat
from noising.runs.trust import require_trusted

_MAX_NAME_BYTES = 200  # file systems take 255, and the job's number goes before
_ROOM = 2**16
"""Bytes that a run needs before it begins: its options and its log."""


def _job_folder(sweep: str, number: int, overrides: str) -> str:
    """`${job_folder:...}` in conf/: the folder of a job in its sweep's, by its number and overrides."""
    earlier = f"{number}_{_cut(overrides.replace('/', '-'))}"  # 0_seed=0, as a sweep that goes on may have named it
    return earlier if Path(sweep, earlier).is_dir() else f"{number}_{_file_name(overrides)}"


def _file_name(text: str) -> str:
    """`text` as one path component that a shell and Hydra take without quotes, and not too long."""
    bare = re.sub(r"[\[\](){}'\"]", "", text).replace(",", "_")
    return _cut(re.sub("[^A-Za-z0-9_.+-]+", "-", bare))


def _cut(text: str) -> str:
    """`text`, or if it is too long its beginning, with a digest of the whole."""
    if len(text.encode()) <= _MAX_NAME_BYTES:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.encode()[: _MAX_NAME_BYTES - 9].decode(errors="ignore") + "-" + digest


def _output_folder(config_name: str, kind: str = "run") -> str:
    """`${output_folder:...}` in conf/: where the runs, or the sweeps, of a config lie."""
    command = COMMANDS.get(config_name)
    if command is None:  # a config of the user's own
        return config_name
    return command.sweeps if kind == "sweep" and command.sweeps else command.folder


OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)
OmegaConf.register_new_resolver("output_folder", _output_folder, replace=True)


class Resumed(NamedTuple):
    """The overrides of a command, and the folder of the run to continue, if it names one."""

    overrides: list[str]
    folder: Path | None = None
    newest: bool = False
    """`resume=true`: the newest unfinished run of this command is continued; `newest` finds it."""


def resumed(overrides: Sequence[str], multirun: bool, defaults: Callable[[], DictConfig]) -> Resumed:
    """The overrides with those of the run that `resume=PATH` names; its own come first, those given here win.

    defaults: gives the command's config without overrides, to compare that of a run without a record of them with.

    Raises ConfigError if there is no such run, if its record asks for what a stranger may not, or, for a sweep, if
    other options are given.
    """
    wish, others = _given(overrides, "resume"), _without(overrides, "resume")
    if wish is None:
        return Resumed(list(overrides))
    if wish.lower() in NO:
        return Resumed([*others, "resume=false"])
    if not wish:
        raise ConfigError("resume= is empty: write resume=true, or resume=FOLDER with a run's folder")
    options = [override for override in others if not _of_hydra(override)]
    if wish.lower() not in YES:
        folder = run_folder(wish)
        if folder.is_file():
            raise ConfigError(f"resume={folder}: this is a file; give the run's folder: it goes on from last.ckpt")
        require_own_files(folder, f"resume={folder}")
        recorded = _recorded(folder, multirun, defaults)
        if multirun and options:
            _require_same_sweep(folder, recorded, options)
            recorded = []
        given = {_name(override) for override in others}
        before = [override for override in recorded if not _is_given(override, given)]
        require_trusted_overrides(before, f"resume={folder}", folder)
        return Resumed([*before, *others, "resume=true"], folder)
    chosen = _given(overrides, _key(multirun))
    if chosen is not None and multirun and (Path(chosen) / "multirun.yaml").is_file():
        _require_same_sweep(Path(chosen), _recorded(Path(chosen), multirun, defaults), options)
    return Resumed(list(overrides), newest=chosen is None)


def newest(config: DictConfig, overrides: Sequence[str], multirun: bool) -> Path | None:
    """The newest unfinished run of these overrides, for `resume=true`; without one, a new run, and a line says so."""
    where = _root(config, multirun)
    options = [override for override in _without(overrides, "resume") if not _of_hydra(override)]
    found = find_sweep(where, options, _number_of_jobs(options)) if multirun else find_resumable(where, options)
    if found is None:
        kind = "sweep" if multirun else "run"
        print(f"resume: no unfinished {kind} of this command under {printable(where)}/; starting a new one")
    return found


def _number_of_jobs(overrides: Sequence[str]) -> int | None:
    """Number of jobs of Hydra's own sweeper; None if another sweeper decides."""
    number = 1
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                return None
            number *= sum(1 for _ in override.sweep_string_iterator())
    return number


def begin_anew(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Take `resume` back, in the config too; returns the overrides without it."""
    with open_dict(config):
        config.resume = False
        config.hydra.overrides.task = _without([str(word) for word in config.hydra.overrides.task], "resume")
    return _without(overrides, "resume")


def of_child(words: Sequence[str]) -> list[str] | None:
    """Overrides of another rank that Lightning started: those that the first has recorded in the run's folder.

    words: as they were typed, and then Lightning's. None if this process is not such a rank.
    """
    named = [word.partition("=")[2] for word in words if word.startswith("hydra.run.dir=")]
    if "LOCAL_RANK" not in os.environ or _launched() or not named:
        return None
    found = re.fullmatch('"(.*)"', named[-1], re.DOTALL)  # Lightning puts quotes around, and leaves those within
    folder = found[1] if found else unquoted(named[-1])
    given = with_paths(_without(words, "hydra.run.dir"), multirun=False)
    record = Path(folder, ".hydra", "overrides.yaml")
    task = (read_overrides(record) or []) if record.is_file() else _without(given, "resume")
    ours = [f"hydra.run.dir={quoted(folder)}", *filter(_of_hydra, given)]
    return [*(word for word in task if not _of_hydra(word)), *ours]


def _launched() -> bool:
    """Whether torchrun or srun started this rank, as it did the others, by one command line."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def refuse_launched_sweep() -> None:
    """Raise UsageError if this process is one of many that torchrun or srun started."""
    if _launched():
        raise UsageError("a sweep cannot run under torchrun or srun: start the jobs one by one")


def _given(overrides: Sequence[str], key: str) -> str | None:
    """The last value that the command line itself gives to `key`, unquoted."""
    found = None
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals and name.lstrip("+") == key:
            found = unquoted(value)
    return found


def _name(override: str) -> str:
    """The option or group that an override sets, adds or takes away."""
    return override.partition("=")[0].lstrip("+~")


def _is_given(recorded: str, given: set[str]) -> bool:
    """Whether one of the names given is that of a recorded override, or of a group in which it changes an option."""
    name = _name(recorded)
    of_config = recorded.startswith(("++", "~"))  # an option of a choice that is replaced
    return name in given or (of_config and any(name.startswith(f"{group}.") for group in given))


def _of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _without(overrides: Sequence[str], key: str) -> list[str]:
    return [override for override in overrides if override.partition("=")[0].lstrip("+") != key]


def _key(multirun: bool) -> str:
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


def _root(config: DictConfig, multirun: bool) -> Path:
    """The folder that holds all runs (or sweeps): what stands before the first `${now` in hydra.run.dir."""
    node = config.hydra.sweep if multirun else config.hydra.run
    pattern = str(OmegaConf.to_container(node, resolve=False)["dir"])  # type: ignore[index, call-overload]
    before, now, _ = pattern.partition("${now")
    node.dir = before
    path = Path(node.dir)
    node.dir = pattern
    return path if now and before.endswith("/") else path.parent


def _require_same_sweep(folder: Path, recorded: Sequence[str], options: Sequence[str]) -> None:
    """Jobs that are done would stand in the table under options that they were not done with."""
    changed = sorted({option for option in recorded if not _of_hydra(option)} ^ set(options))
    if changed:
        raise ConfigError(
            f"resume={folder}: that sweep was started with other options (these differ: {', '.join(changed)}); "
            f"go on with -m {shell_word('resume', folder)} alone, or start a new sweep without resume"
        )


def _recorded(folder: Path, multirun: bool, defaults: Callable[[], DictConfig]) -> list[str]:
    """The overrides a run or a sweep was started with, without `resume`."""
    of_run, of_sweep = folder / ".hydra" / "overrides.yaml", folder / "multirun.yaml"
    if multirun and of_sweep.is_file():
        values = read_overrides(of_sweep, "hydra", "overrides", "task")
    elif not multirun and of_run.is_file():
        values = read_overrides(of_run)
        if values is not None and _without_default(folder, values, defaults):
            values = ["~experiment", *values]
    elif not multirun and Run(folder).config_file.is_file():  # a copy without its hidden files
        stored = Run(folder).config
        require_trusted(stored, f"resume={folder}", folder)
        config = defaults()
        own = OmegaConf.masked_copy(config, [name for name in map(str, config) if name != "hydra"])
        values = _words(stored, OmegaConf.to_container(own, resolve=True))
    elif of_sweep.is_file():
        raise ConfigError(f"resume={folder}: this is a sweep's folder; add -m")
    else:
        sign = "multirun.yaml" if multirun else ".hydra/overrides.yaml"
        raise ConfigError(f"resume={folder}: no {'sweep' if multirun else 'run'} there (there is no {folder / sign})")
    if values is None:
        raise ConfigError(f"resume={folder}: its record of options is damaged: restore the file, or start a new run")
    return _without(values, "resume")


def _without_default(folder: Path, recorded: Sequence[str], defaults: Callable[[], DictConfig]) -> bool:
    """Whether a run named no experiment and had none, as before there was the one that stands for none."""
    record = folder / ".hydra" / "hydra.yaml"
    if "experiment" in map(_name, recorded):
        return False
    if record.is_file() and "\n      experiment: default\n" in record.read_text("utf-8"):
        return False
    return defaults().hydra.runtime.choices.get("experiment") is not None


def _words(stored: Mapping[str, Any], defaults: Any) -> list[str]:
    """The overrides that make the stored config of the command's own."""
    own, theirs = flat(defaults), flat(stored)
    gone = [name for name in own if name not in theirs]
    whole = dict.fromkeys(name.partition(".")[0] for name in gone if name.partition(".")[0] not in stored)
    words = [f"~{name}" for name in (*whole, *(name for name in gone if name.partition(".")[0] in stored))]
    # what names another class begins anew, without the options that the two have alike
    differing = {name for name in theirs if name not in own or own[name] != theirs[name]}
    anew = tuple(name.removesuffix("_target_") for name in differing if name.endswith("._target_"))
    changed = [name for name in theirs if name in differing or name.startswith(anew)]
    return [*words, *(f"++{name}={_value(theirs[name])}" for name in changed)]


def _value(value: Any) -> str:
    """The value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{quoted(str(name))}:{_value(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(value) if isinstance(value, str) else str(value)


def claim(config: DictConfig, overrides: Sequence[str], multirun: bool, folder: Path | None = None) -> Path | None:
    """Settle the folder to write in, make it and write it into the config.

    folder: that of the run that goes on. Returns the folder if it is new: what leaves nothing in it may remove it. Two
    runs of one second get 12-30-00 and 12-30-00-2: mkdir says who was first. Under torchrun or srun every rank works
    out the same name and none makes it.
    """
    key = _key(multirun)
    chosen = _given(overrides, key)
    if chosen == "":
        raise ConfigError(f"{key}= is empty: name a folder, or leave it out")
    fresh: Path | None = None
    if folder is not None or chosen is not None:
        folder = folder or Path(str(OmegaConf.select(config, key)))
        first = _rank() == "0" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if not multirun and first and not config.get("resume") and _holds_run(Run(folder)):
            raise ConfigError(f"hydra.run.dir={folder} already holds a run: choose another folder, or add resume=true")
        fresh = folder if not multirun and not _launched() and not folder.exists() else None
        _make(folder, key)
    elif _launched():
        folder = _root(config, multirun) / _agreed_name()
    else:
        folder = fresh = _make_anew(Path(str(OmegaConf.select(config, key))), key)
    with open_dict(config):
        OmegaConf.update(config, key, str(folder))
    return fresh


def _holds_run(run: Run) -> bool:
    """Whether a run is there that another must not write over: not one that failed before its first step."""
    if not run.summary_file.exists():
        return False
    return run.status not in ("failed", "interrupted") or run.has_results


def _make_anew(wanted: Path, key: str) -> Path:
    _make(wanted.parent, key)
    folder, count = wanted, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
            folder = wanted.with_name(f"{wanted.name}-{count}")
        else:
            return folder


def _make(folder: Path, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={folder}: cannot make this folder ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{key}={folder}: cannot write in this folder")
    trial = folder / f".room.{os.getpid()}"  # Hydra writes over the record of a run that goes on: not on a full disk
    try:
        trial.write_bytes(bytes(_ROOM))
    except OSError as error:
        raise ConfigError(f"{key}={folder}: cannot write in this folder ({error.strerror}): make room first") from error
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)


def _rank() -> str:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def _agreed_name() -> str:
    """A name all ranks work out alike: Slurm's job, torchrun's rendezvous, or on one node its process."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return f"slurm-{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_STEP_ID', '0')}"
    if name != "none":
        return f"torchrun-{_file_name(name)}"
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise UsageError("torchrun on several nodes: add --rdzv-id=NAME or hydra.run.dir=FOLDER, the same on all")
    agent = os.getppid()
    try:  # ticks from boot to the agent's start; the command's name, in brackets, may hold spaces
        start = Path(f"/proc/{agent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        start = "0"
    return f"torchrun-{agent}-{start}"


def backup(config: DictConfig) -> dict[Path, bytes]:
    """The .hydra/*.yaml of a run that goes on: Hydra overwrites them before the run can be refused."""
    return {path: path.read_bytes() for path in Path(str(config.hydra.run.dir)).glob(".hydra/*.yaml")}


def remove_if_empty(folder: Path | None) -> None:
    """Remove a folder with no more in it than Hydra's record of the options and a log, and empty parents."""
    if folder is None or not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name != ".hydra" and not (entry.suffix == ".log" and entry.stat().st_size < 10_000):
            return
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()
    here = Path.cwd()
    for parent in folder.absolute().parents:
        if parent == here or here not in parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:  # other runs are in it
            return
