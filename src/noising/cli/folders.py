"""Where a run or a sweep writes: a folder of its own, or with `resume` that of the run it continues."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from noising.cli.overrides import Composer
from noising.errors import ConfigError, UsageError

_LONGEST_NAME = 200  # bytes; file systems take 255, and the job's number goes before


def _file_name(text: str) -> str:
    """`text` as one path component: no slashes, and cut, with a digest of the whole, if it is too long."""
    text = text.replace("/", "-")
    if len(text.encode()) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.encode()[: _LONGEST_NAME - 9].decode(errors="ignore") + "-" + digest


OmegaConf.register_new_resolver("file_name", _file_name, replace=True)


def is_ddp_child(overrides: Sequence[str]) -> bool:
    """Whether Lightning started this process as another rank of a run, whose folder is settled."""
    return "LOCAL_RANK" in os.environ and not _launched() and _given(overrides, "hydra.run.dir") is not None


def _launched() -> bool:
    """Whether torchrun or srun started this rank, as it did the others, by one command line."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def refuse_launched_sweep() -> None:
    if _launched():
        raise UsageError("a sweep cannot run under torchrun or srun: start the jobs one by one")


def _given(overrides: Sequence[str], key: str) -> str | None:
    """The last value that the command line itself gives to `key`, unquoted."""
    found = None
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals and name.lstrip("+") == key:
            found = value.strip("'\"")
    return found


def _name(override: str) -> str:
    """Of the option or group that an override sets, adds or takes away."""
    return override.partition("=")[0].lstrip("+~")


def _without(overrides: Sequence[str], key: str) -> list[str]:
    return [override for override in overrides if override.partition("=")[0].lstrip("+") != key]


def _quoted(key: str, folder: Path) -> str:
    escaped = str(folder).replace("'", "\\'")
    return f"{key}='{escaped}'"


def _key(multirun: bool) -> str:
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


def _template(config: DictConfig, multirun: bool) -> str:
    """The unresolved pattern of the folders."""
    hydra = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(hydra, dict)
    return str(hydra["sweep" if multirun else "run"]["dir"])


def root(config: DictConfig, multirun: bool) -> Path:
    """The folder which holds all runs (or sweeps): what stands before the first `${` in hydra.run.dir."""
    before, interpolation, _ = _template(config, multirun).partition("${")
    path = Path(before)
    return path if interpolation and before.endswith("/") else path.parent


def resolve_resume(composing: Composer, overrides: list[str], multirun: bool) -> list[str]:
    """Replaces `resume=...` by `resume=true` and that run's folder; drops it if there is none."""
    wish = _given(overrides, "resume")
    if wish is None or wish.lower() in ("false", "null", "no", "off", "0", ""):
        return overrides
    others = _without(overrides, "resume")
    options = [override for override in others if not override.lstrip("+~").startswith(("hydra.", "hydra/"))]
    if wish.lower() not in ("true", "yes", "on", "1"):
        folder = Path(wish)
        recorded = _recorded(folder, multirun)
        if multirun and options:
            _require_same_sweep(folder, recorded, options)
            recorded = []
        given = {_name(override) for override in others}
        kept = [override for override in recorded if _name(override) not in given]
        return [*kept, *others, "resume=true", _quoted(_key(multirun), folder)]
    chosen = _given(overrides, _key(multirun))
    if chosen is not None:
        if multirun and (Path(chosen) / "multirun.yaml").is_file():
            _require_same_sweep(Path(chosen), _recorded(Path(chosen), multirun), options)
        return overrides
    where = root(composing.compose(others, multirun=multirun), multirun)
    run = importlib.import_module("noising.runs.folder")
    found: Path | None = (run.find_sweep if multirun else run.find_resumable)(where, options)
    if found is None:
        kind = "sweep" if multirun else "run"
        print(f"resume: no unfinished {kind} of this command under {where}/; starting a new one")
        return others
    return [*others, "resume=true", _quoted(_key(multirun), found)]


def _require_same_sweep(folder: Path, recorded: Sequence[str], options: Sequence[str]) -> None:
    """Jobs that are done would stand in the table under options that they were not done with."""
    before = {option for option in recorded if not option.lstrip("+~").startswith(("hydra.", "hydra/"))}
    changed = sorted(before ^ set(options))
    if changed:
        raise ConfigError(
            f"resume={folder}: that sweep was started with other options (there or here alone: {', '.join(changed)}); "
            f"go on with -m resume={folder} alone, or start anew without resume"
        )


def _recorded(folder: Path, multirun: bool) -> list[str]:
    """The overrides a run or a sweep was started with, without `resume`."""
    of_run, of_sweep = folder / ".hydra" / "overrides.yaml", folder / "multirun.yaml"
    if multirun and of_sweep.is_file():
        values = OmegaConf.select(OmegaConf.load(of_sweep), "hydra.overrides.task")
    elif not multirun and of_run.is_file():
        values = OmegaConf.load(of_run)
    elif of_sweep.is_file():
        raise ConfigError(f"resume={folder}: this is a sweep's folder; add -m")
    else:
        sign = "multirun.yaml" if multirun else ".hydra/overrides.yaml"
        raise ConfigError(f"resume={folder}: no {'sweep' if multirun else 'run'} there (there is no {folder / sign})")
    return _without([str(value) for value in values or []], "resume")


def name_jobs_by_what_is_swept(parsed: Sequence[Override], overrides: list[str]) -> list[str]:
    """Leaves the overrides that all jobs share out of the names of the jobs' folders."""
    key = "hydra.job.config.override_dirname.exclude_keys"
    if _given(overrides, key) is not None:
        return overrides
    shared = [o.get_key_element() for o in parsed if not o.is_sweep_override() and not o.is_hydra_override()]
    return [*overrides, f"{key}=[{','.join(['resume', *(name.lstrip('+~') for name in shared)])}]"]


def claim(config: DictConfig, overrides: list[str], multirun: bool) -> tuple[list[str], Path | None]:
    """Adds the folder to write in to the overrides.

    Returns also the folder, if it is new: what leaves nothing in it may remove it.
    Two runs of one second get 12-30-00 and 12-30-00-2: mkdir says who was first. Under torchrun or srun every
    rank works out the same name and none makes it.
    """
    key = _key(multirun)
    if (chosen := _given(overrides, key)) is not None:
        if not chosen:
            raise ConfigError(f"{key}= is empty: name a folder, or leave it out")
        summary = Path(chosen) / "summary.json"
        first = _rank() == "0" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if not multirun and first and summary.exists() and not config.get("resume"):
            raise ConfigError(f"hydra.run.dir={chosen} already holds a run: choose another, or add resume=true")
        fresh = not multirun and not _launched() and not Path(chosen).exists()
        _make(Path(chosen), key)
        return overrides, Path(chosen) if fresh else None
    if _launched():
        return [*overrides, _quoted(key, root(config, multirun) / _agreed_name())], None
    wanted = Path(str(OmegaConf.select(config, key)))
    _make(wanted.parent, key)
    folder, count = wanted, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
            folder = wanted.with_name(f"{wanted.name}-{count}")
        else:
            return [*overrides, _quoted(key, folder)], folder


def _make(folder: Path, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={folder}: cannot make this folder ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{key}={folder}: cannot write in this folder")


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
        raise UsageError("torchrun on several nodes: add --rdzv-id=NAME or hydra.run.dir=FOLDER, for all to agree")
    agent = os.getppid()
    try:  # ticks from boot to the agent's start; the command's name, in brackets, may hold spaces
        start = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        start = "0"
    return f"torchrun-{agent}-{start}"


def hydra_record(overrides: Sequence[str]) -> dict[Path, bytes]:
    """What Hydra wrote of the options of the run that is continued: it will write there anew, even if that is refused.

    `overrides` are `claim`'s, which name the folder.
    """
    folder = _given(overrides, _key(multirun=False))
    return {path: path.read_bytes() for path in Path(folder or "").glob(".hydra/*.yaml")} if folder else {}


def remove_if_empty(folder: Path | None) -> None:
    """Removes a folder with no more in it than Hydra's record of the options and a log, and empty parents."""
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
