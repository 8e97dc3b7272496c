"""`reference`: what samples are held against, computed once and kept, printed, and converted from and to files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from noising.commands.tables import number
from noising.config.instantiate import make, require_whole
from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors
from noising.experiment import Experiment
from noising.metrics.quality import QualityMetric
from noising.metrics.reference_features import ReferenceFeatures
from noising.metrics.statistics import SUFFIXES, StatisticsFile, read_statistics, write_statistics
from noising.runs.folder import Run, replacing
from noising.runs.status import run_status

__all__ = ["reference"]


def reference(cfg: DictConfig, run_dir: Path) -> None:
    """Print the statistics of a data set, or of a file, and write them to cfg.to if it is given."""
    run = Run(run_dir)
    if cfg.count is not None:
        require_whole(cfg, "count", 2)
    for option in ("from", "to"):
        if cfg[option] is not None and (not isinstance(cfg[option], str) or not cfg[option]):
            raise ConfigError(f"{option}={cfg[option]}: expected a file's path, or null")
    if cfg.to is not None and Path(cfg.to).suffix not in SUFFIXES:
        raise ConfigError(f"to={cfg.to}: statistics are written to {' or '.join(SUFFIXES)} files")
    if cfg["from"] is not None:
        with config_errors("from"):
            found = read_statistics(cfg["from"], cfg.count)
    with run_status(run, without_secrets(cfg)):
        if cfg["from"] is None:
            found = _of_data(cfg)
        _write_and_print(cfg, run, found)


def _of_data(cfg: DictConfig) -> StatisticsFile:
    data = Experiment(cfg).data
    protocol = make(cfg.metrics, "metrics", QualityMetric)
    references = ReferenceFeatures(data, protocol.extractor(data), protocol.batch)
    real = references.reference(protocol.split, protocol.real_images(protocol.n), protocol.flips)
    return StatisticsFile(real.statistics, real.card)


def _write_and_print(cfg: DictConfig, run: Run, found: StatisticsFile) -> None:
    moments, card = found
    if cfg.to is not None:
        target = Path(cfg.to)
        try:
            with replacing(target) as file:
                write_statistics(file, target.suffix, moments, card)
        except OSError as error:
            raise ConfigError(f"to={target}: cannot be written ({error.strerror})") from error
    covariance = moments.covariance
    values: dict[str, Any] = {
        "images": moments.count,
        "features": moments.dims,
        "mean_norm": float(moments.mean.norm()),
        "covariance_trace": float(covariance.trace()),
        "covariance_rank": min(moments.dims, moments.count - 1),
    }
    run.write({f"reference/{name}": value for name, value in values.items()}, {"reference": card} if card else None)
    table = Table(title=f"statistics of {card.get('data', cfg['from'])}", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for name, value in {**card, **values}.items():
        table.add_row(name.replace("_", " "), number(value) if isinstance(value, float) else str(value))
    Console(soft_wrap=True).print(table)
    for path in (cfg.to, run.summary_file):
        if path is not None:
            print(os.path.relpath(path))
