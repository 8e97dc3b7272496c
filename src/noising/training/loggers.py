"""Loggers: metrics.csv in the run's folder always, TensorBoard and W&B if chosen.

conf/logger/*.yaml gives each a name and a factory of (run, config); `build_loggers` calls them.
"""

import netrc
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image

from noising.config.secrets import masked
from noising.runs.folder import Run, replacing
from noising.runs.results import Results


def log_image(loggers: Iterable[Logger], key: str, image: Path | np.ndarray, step: int) -> None:
    """Give an image, a file or an array (H, W[, 3]) of uint8, to every logger with a `record_image`, as (H, W, 3)."""
    takers = [logger.record_image for logger in loggers if hasattr(logger, "record_image")]
    if takers:
        with Image.open(image) if isinstance(image, Path) else Image.fromarray(image) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        for record_image in takers:
            record_image(key, pixels, step)


def build_loggers(
    run: Run, config: Mapping[str, Any], chosen: Mapping[str, Callable[..., Logger]] | None = None
) -> list[Logger]:
    """Make metrics.csv's logger, always, and the chosen ones. `chosen` is the instantiated `cfg.logger`."""
    others = [make(run=run, config=config) for name, make in (chosen or {}).items() if name != "csv"]
    return [CSVMetrics(run, config), *others]


def close_loggers(loggers: Iterable[Logger], failed: bool = False) -> None:
    """Write what is buffered, and end W&B's run, since the next job of a sweep begins its own.

    Lightning's `finalize` cannot end it: it comes after every fit and every test.
    """
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandB):
            logger.close(failed)


class TensorBoard(TensorBoardLogger):
    """Event files under tensorboard/ in the run's folder."""

    def __init__(self, run: Run, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(save_dir=run.path, name="tensorboard", version="")

    @rank_zero_only
    def record_image(self, key: str, image: np.ndarray, step: int) -> None:
        self.experiment.add_image(key, image, step, dataformats="HWC")


class WandB(WandbLogger):
    """Weights & Biases, under wandb/ in the run's folder: online if a key is found, else offline, without a prompt.

    WANDB_MODE (online, offline, disabled) decides if it is set. If the service cannot be reached, the run is recorded
    offline, to be sent later by `wandb sync`. A resumed run is the same run there.
    """

    def __init__(
        self,
        run: Run,
        config: Mapping[str, Any] | None = None,
        project: str = "noising",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        self._folder = run.path / "wandb"
        options: dict[str, Any] = {"entity": entity, "group": group, "tags": list(tags) or None}
        options["config"] = masked(dict(config or {}))
        super().__init__(name=name or run.path.name, save_dir=run.path, project=project, **options)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = self._begin(_wandb_mode())
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self._experiment

    def _begin(self, mode: Any) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)  # wandb falls back to a temporary folder if it cannot write
        arguments = {**self._wandb_init, "id": self._stable_id()}
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

    def _stable_id(self) -> str:
        """The run's identity at W&B: random, since two machines may have equal folders, and stored for a resume."""
        file = self._folder / "id.txt"
        if not file.exists():
            with replacing(file) as out:
                out.write(uuid.uuid4().hex[:12].encode())
        return file.read_text().strip()

    @rank_zero_only
    def record_image(self, key: str, image: np.ndarray, step: int) -> None:
        import wandb

        self.experiment.log({key: wandb.Image(image), "trainer/global_step": step})

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """End the run at W&B, if one was begun."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=1 if failed else 0)
            self._experiment = None


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


class CSVMetrics(Logger):
    """The run's own record and metrics.csv: what Lightning itself, or a callback by `self.log`, logs."""

    name, version = "csv", ""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self.results = results

    @property
    def save_dir(self) -> str:
        return str(self.results.run.path)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        own = {name: value for name, value in metrics.items() if name not in ("epoch", "step")}  # Lightning adds them
        self.results.add(own, step or 0)

    @rank_zero_only
    def save(self) -> None:
        self.results.sync()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.results.export()
