"""Loggers: the record of what Lightning logs itself, always, and TensorBoard and W&B if chosen.

conf/logger/*.yaml chooses them. `noising.runs.results.Results` feeds TensorBoard and W&B with numbers, pictures, tables
and charts; `CSVMetrics` stands first in the Trainer's list, and gives to `Results` what a callback logs by `self.log`.
"""

import math
import netrc
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import yaml  # type: ignore[import-untyped]
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from noising.config.secrets import masked
from noising.runs.declarations import Declaration
from noising.runs.folder import Run, replacing
from noising.runs.results import Results
from noising.runs.resume import read_overrides
from noising.runs.rows import flat

VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
    "job_type": "WANDB_JOB_TYPE",
    "id": "WANDB_RUN_ID",
}
"""W&B's variables of the environment, by the argument of wandb.init that each stands for."""
MODES = ("", "online", "offline", "disabled", "dryrun", "run")
"""Values of WANDB_MODE."""
LONGEST_NAME = 128
"""The most characters that W&B takes for the name of a run, a group or an artifact."""


class CSVMetrics(Logger):
    """Lightning's way into the run's record, without its own numbers "epoch" and "step"."""

    name, version = "csv", ""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self.results = results

    @property
    def save_dir(self) -> str:
        return str(self.results.table.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the record alone: Lightning gives them to the other loggers itself."""
        if own := {name: value for name, value in metrics.items() if name not in ("epoch", "step")}:
            self.results.add(own, step or 0)

    @rank_zero_only
    def save(self) -> None:
        self.results.sync()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.results.export()


class TensorBoard(TensorBoardLogger):
    """Event files under tensorboard/ in the run's folder, with the config as text."""

    def __init__(self, run: Run, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(save_dir=run.path, name="tensorboard", version="")
        self._config = masked(dict(config or {}))
        self._results: list[str] = []

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        begun = self._experiment is not None
        writer = super().experiment
        if not begun and self._config:
            text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
            writer.add_text("config", f"```yaml\n{text}```", 0)
        return writer

    def declare(self, name: str, declaration: Declaration) -> None:
        """Note a number of the end of the run, for the table of runs."""
        if not name.startswith(("train/", "val/")):
            self._results.append(name)

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """Add the run to TensorBoard's table of runs (HPARAMS): its options, and the numbers of its end."""
        from torch.utils.tensorboard.summary import hparams

        if self._experiment is not None and self._results:
            simple = {k: v for k, v in flat(self._config).items() if isinstance(v, bool | int | float | str)}
            writer = self.experiment._get_file_writer()  # Lightning closes it after every fit and test
            for summary in hparams(simple, dict.fromkeys(self._results, 0.0)):  # type: ignore[no-untyped-call]
                writer.add_summary(summary)
            self.experiment.close()

    @rank_zero_only
    def record_image(self, key: str, image: np.ndarray, step: int, caption: str = "") -> None:
        """Record a picture (H, W, 3) of uint8, and its caption as a text under the same key."""
        self.experiment.add_image(key, image, step, dataformats="HWC")
        if caption:
            self.experiment.add_text(key, caption, step)

    @rank_zero_only
    def record_table(self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int) -> None:
        """Record a table as a text in Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        self.experiment.add_text(key, "\n".join(map(_markdown, lines)), step)

    @rank_zero_only
    def record_chart(
        self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str, step: int
    ) -> None:
        """Record rows (x, y, line) as a curve of scalars for each line, "key/line", and the title as a text.

        TensorBoard's horizontal axis counts in whole numbers. Where an x is none, a point stands at its place in the
        order of all x of the chart, and the text gives the first and the last x.
        """
        points = sorted(rows, key=lambda row: row[0])
        places = {x: place for place, x in enumerate(dict.fromkeys(x for x, *_ in points))}
        whole = all(float(x).is_integer() for x in places)
        for x, y, line in points:
            self.experiment.add_scalar(f"{key}/{line}", y, int(x) if whole else places[x])
        text = f"{title}: {columns[1]} by {columns[0]}"
        if not whole:
            text += f", in order, from {points[0][0]:g} to {points[-1][0]:g}"
        self.experiment.add_text(key, text, step)


def _markdown(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


class WandB(WandbLogger):
    """Weights & Biases, under wandb/ in the run's folder: online if a key is found, else offline, without a prompt.

    WANDB_MODE (online, offline, disabled) decides if it is set. If the service cannot be reached, the run is recorded
    offline, to be sent later by `wandb sync`. A resumed run is the same run there.
    """

    def __init__(
        self,
        run: Run,
        config: Mapping[str, Any],
        command: str = "train",
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] = (),
        artifacts: Sequence[Literal["checkpoints", "samples"]] = (),
    ) -> None:
        """command: the command's name, the type of the run there. artifacts: what is stored there in the end.

        An option that is not set is that of the environment (WANDB_PROJECT, WANDB_NAME, ...), else our own: the project
        "noising", the name by `run_name`, the group by `sweep_group`. The tags are those of the config and `tags`. In a
        run that `wandb agent` starts, wandb itself puts the agent's project, entity and id before any given here.

        Raises ValueError for a tag, a project, an id or a mode that W&B would not take, and for one id of all jobs of a
        sweep.
        """
        all_tags = [*dict.fromkeys([*config.get("tags", ()), *tags])]
        if wrong := [tag for tag in all_tags if not 1 <= len(tag) <= 64]:
            raise ValueError(f"W&B takes tags of 1 to 64 characters, got {wrong[0]!r}")
        self._run, self._artifacts = run, artifacts
        given = {"project": project, "entity": entity, "group": group, "name": name, "notes": notes, "tags": all_tags}
        if os.environ.get("WANDB_RUN_ID") and "WANDB_SWEEP_ID" not in os.environ and sweep_group(run):
            raise ValueError("WANDB_RUN_ID is set, and would make all jobs of the sweep one run at W&B: unset it")
        own = {"project": "noising", "group": sweep_group(run), "name": run_name(run, command), "job_type": command}
        arguments = wandb_arguments(given, own, os.environ)
        for argument, most in (("project", LONGEST_NAME), ("id", 64)):
            if (value := arguments[argument]) and (len(value) > most or set(value) & set("/\\#?%:")):
                raise ValueError(
                    f"the {argument} at W&B must have at most {most} characters, none of / \\ # ? % :, got {value!r}"
                )
        if (mode := os.environ.get("WANDB_MODE", "").lower()) not in MODES:
            raise ValueError(f"WANDB_MODE must be one of {', '.join(filter(None, MODES))}, got {mode}")
        self._given_id = arguments.pop("id")
        self._kinds: dict[str, str] = {}  # of what was recorded, by key
        self._best: set[str] = set()  # numbers of which the summary holds the best
        # of the run that another process has begun: Lightning's __getstate__ begins it before ddp_spawn's workers
        self._attach_id: str | None = None
        super().__init__(save_dir=run.path, config=masked(dict(config)), **arguments)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and self._attach_id is not None:
            import wandb

            self._experiment = wandb._attach(self._attach_id)  # type: ignore[attr-defined]
        elif self._experiment is None:
            self._experiment = self._begin(_wandb_mode())
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self._experiment

    def _begin(self, mode: Any) -> Any:
        import wandb

        folder = self._run.path / "wandb"
        folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to a temporary folder if it cannot write
        arguments = {**self._wandb_init, "id": _stable_id(folder / "id.txt", self._given_id)}
        arguments.pop("anonymous", None)
        quiet: dict[str, Any] = {"console": "off", "silent": True, "init_timeout": 30.0, "login_timeout": 5.0}
        try:
            return wandb.init(**arguments, mode=mode, settings=wandb.Settings(**quiet))
        except (wandb.Error, TimeoutError) as error:
            if mode != "online":
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            rank_zero_warn(f"W&B cannot be reached ({reason}): the run is recorded offline")
            wandb.teardown()  # its process still holds the id, waiting for the service
            return wandb.init(**arguments, mode="offline", settings=wandb.Settings(**quiet))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers of an optimizer step.

        A number with a better direction is left out where it is not finite: wandb's minimum of nan and more is nan.
        """
        shown = {name: value for name, value in metrics.items() if name not in self._best or math.isfinite(value)}
        if shown:
            super().log_metrics(shown, step)

    @rank_zero_only
    def declare(self, name: str, declaration: Declaration) -> None:
        """Make the summary hold the best and the last value of a number in the course of training."""
        if declaration.better is not None and name.startswith(("train/", "val/")):
            self._best.add(name)
            best = {"lower": "min,last", "higher": "max,last"}[declaration.better]
            self.experiment.define_metric(name, step_metric="trainer/global_step", summary=best)

    @rank_zero_only
    def record_image(self, key: str, image: np.ndarray, step: int, caption: str = "") -> None:
        """Record a picture (H, W, 3) of uint8."""
        import wandb

        self._record(key, "picture", wandb.Image(image, caption=caption or None), step)

    @rank_zero_only
    def record_table(self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int) -> None:
        """Record a table; a column may hold words and numbers."""
        self._record(key, "table", _wandb_table(columns, rows), step)

    @rank_zero_only
    def record_chart(
        self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str, step: int
    ) -> None:
        """Record rows (x, y, line) as a chart of lines; wandb keeps its table under the chart's key and "_table"."""
        import wandb

        x, y, line = columns
        chart = wandb.plot.line(_wandb_table(columns, rows), x, y, stroke=line, title=title)
        self._record(key, "chart", chart, step)

    def _record(self, key: str, kind: str, content: Any, step: int) -> None:
        """Log under the key, or under one with the kind behind it if something of another kind came under it first."""
        own = key if self._kinds.setdefault(key, kind) == kind else f"{key}_{kind}"
        self.experiment.log({own: content, "trainer/global_step": step})

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """Store the chosen artifacts and end the run at W&B, if one was begun."""
        if self._experiment is not None:
            experiment, self._experiment = self._experiment, None
            try:
                try:
                    self._store_artifacts(experiment)
                finally:
                    experiment.finish(exit_code=1 if failed else 0)
            except ConnectionError:  # its process has died: wandb would ask it for an answer again as Python ends
                import wandb

                with suppress(ConnectionError):
                    wandb.teardown()
                raise

    def _store_artifacts(self, experiment: Any) -> None:
        import wandb

        folder = self._run.path
        kinds = {
            "checkpoints": ("model", [*(folder / "checkpoints").glob("*.ckpt")]),
            "samples": ("samples", [self._run.samples_image, folder / "samples.npz", *self._run.samples.rglob("*")]),
        }
        # offline, a copy waits for `wandb sync`: by then a resumed run may have replaced the file
        policy: Literal["mutable", "immutable"] = "mutable" if experiment.offline else "immutable"
        for kind, paths in (kinds[chosen] for chosen in self._artifacts):
            if files := sorted(path for path in paths if path.is_file()):
                artifact = wandb.Artifact(_artifact_name(kind, experiment.id), type=kind)
                for file in files:
                    artifact.add_file(str(file), name=file.relative_to(folder).as_posix(), policy=policy)
                experiment.log_artifact(artifact)


def wandb_arguments(given: Mapping[str, Any], own: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Settle arguments of wandb.init: what is given, else what the environment says, else our own, else None.

    Tags are those given and those of the environment.
    """
    found: dict[str, Any] = {
        argument: given.get(argument) or environment.get(variable) or own.get(argument)
        for argument, variable in VARIABLES.items()
    }
    of_environment = [tag for tag in environment.get("WANDB_TAGS", "").split(",") if tag]
    return found | {"tags": [*dict.fromkeys([*given.get("tags", ()), *of_environment])] or None}


def run_name(run: Run, command: str) -> str:
    """The run's name at W&B: its overrides, and the date and time of its folder.

    What is swept over stands first; without overrides the name is the command's.
    """
    sweep = None if sweep_group(run) is None else run.path.parent
    folder = Path(os.path.abspath(sweep or run.path))
    begun = f" ({'/'.join(folder.parts[-2:])[-64:]})"
    overrides = read_overrides(run.path / ".hydra" / "overrides.yaml") or []
    if sweep is not None:  # what is swept comes first, since long names are cut
        common = read_overrides(sweep / "multirun.yaml", "hydra", "overrides", "task") or []
        overrides.sort(key=lambda word: word in common)
    words = " ".join(word for word in overrides if not _ADDRESS.match(word)) or command
    room = LONGEST_NAME - len(begun)
    return (words if len(words) <= room else words[: room - 1] + "…") + begun


_ADDRESS = re.compile(r"[+~]*(resume|tags|logger)\b")
"""Overrides that do not change the run, but where it goes on and where its numbers go."""


def sweep_group(run: Run) -> str | None:
    """The group of a sweep's job at W&B: the sweep's folder, from the working directory if it lies there.

    None for a single run.
    """
    sweep = run.path.parent
    if not (sweep / "multirun.yaml").exists():
        return None
    path = os.path.relpath(sweep)
    return ("/".join(Path(os.path.abspath(sweep)).parts[-2:]) if path.startswith("..") else path)[-LONGEST_NAME:]


def _wandb_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    import wandb

    data = [[None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row] for row in rows]
    return wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)  # whose JSON has no infinity


def _stable_id(file: Path, given: str | None) -> str:
    """The run's identity at W&B, stored for a resume; random unless given: two machines may have equal folders."""
    if given or not file.exists():
        with replacing(file) as out:
            out.write((given or uuid.uuid4().hex[:12]).encode())
    return file.read_text(encoding="utf-8").strip()


def _artifact_name(kind: str, run_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{kind}-{run_id}")[:LONGEST_NAME]


def _wandb_mode() -> Any:
    """The mode of WANDB_MODE, or else online if W&B would find a key. Its own `wandb.login` would ask the service."""
    if mode := os.environ.get("WANDB_MODE", "").lower():
        return {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "online"
    import wandb

    host = urlsplit(wandb.setup().settings.base_url).hostname or ""
    given = os.environ.get("NETRC")
    candidates = [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]
    with suppress(OSError, netrc.NetrcParseError):
        if any(netrc.netrc(file).authenticators(host) is not None for file in candidates if file.is_file()):
            return "online"
    return "offline"
