"""`reference`: statistics of real images' features, computed once, printed, and converted from and to files."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from noising.commands.tables import cell, print_files, print_table
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors
from noising.experiment import Experiment
from noising.metrics.quality import QualityMetric
from noising.metrics.reference_features import ReferenceFeatures
from noising.metrics.statistics import SUFFIXES, StatisticsFile, read_statistics, write_statistics
from noising.runs.folder import Run, replacing
from noising.runs.status import run_status


def reference(cfg: DictConfig, run_dir: Path) -> None:
    """Print the statistics of a data set, or of the file cfg.from, and write them to cfg.to if it is given."""
    run = Run(run_dir)
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
    metric = make(cfg.metrics, "metrics", QualityMetric)
    references = ReferenceFeatures(data, metric.extractor(data), metric.batch)
    real = references.reference(metric.split, metric.real_images(metric.n), metric.flips)
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
    entries = card | values
    print_table(
        f"statistics of {card.get('data', cfg['from'])}",
        ("", ""),
        [[name.replace("_", " "), cell(entries, name)] for name in entries],
        words=(0, 1),
    )
    print_files(*([] if cfg.to is None else [cfg.to]), run.summary_file)
