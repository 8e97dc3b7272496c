"""`reference`: statistics of real images' features, computed once, printed, and converted from and to files."""

from pathlib import Path

from omegaconf import DictConfig

from noising.commands.loggers import open_results
from noising.commands.tables import cell, print_files, print_table
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors
from noising.experiment import Experiment
from noising.metrics.quality import QualityMetric
from noising.metrics.reference_features import ReferenceFeatures
from noising.metrics.statistics import SUFFIXES, read_statistics, write_statistics
from noising.runs.folder import Run, replacing
from noising.runs.status import run_status


def reference(cfg: DictConfig, run_dir: Path) -> None:
    """Print the statistics of a data set, or of the file cfg.from, and write them to cfg.to if it is given."""
    run, target = Run(run_dir), None if cfg.to is None else Path(cfg.to)
    if target is not None and target.suffix not in SUFFIXES:
        raise ConfigError(f"to={cfg.to}: statistics are written to {' or '.join(SUFFIXES)} files")
    if cfg["from"] is None and cfg.get("metrics") is None:
        raise ConfigError("metrics is missing: choose metrics=fd, fid or fd_dinov2, or give a file with from=PATH")
    if cfg["from"] is not None:
        with config_errors("from"):
            moments, card = read_statistics(cfg["from"], cfg.count)
        if moments.count is None and target is not None:
            raise ConfigError(f"from={cfg['from']}: it does not say of how many images it is: add count=50000, say")
    results = open_results(run, cfg, "reference")
    with run_status(results, without_secrets(cfg)):
        if cfg["from"] is None:
            data = Experiment(cfg).data
            metric = make(cfg.metrics, "metrics", QualityMetric)
            references = ReferenceFeatures(data, metric.extractor(data), metric.batch)
            real = references.reference(metric.split, metric.real_images(metric.n), metric.flips)
            moments, card = real.statistics, real.card
        if target is not None:
            try:
                with replacing(target) as file:
                    write_statistics(file, target.suffix, moments, card)
            except OSError as error:
                raise ConfigError(f"to={target}: cannot be written ({error.strerror})") from error
        values = {
            "features": moments.dims,
            "mean_norm": float(moments.mean.norm()),
            "covariance_trace": float(moments.covariance.trace()),
        }
        if moments.count is not None:
            values = {"images": moments.count, **values, "covariance_rank": min(moments.dims, moments.count - 1)}
        named = {f"reference/{name}": value for name, value in values.items()}
        results.write_all(named, 0, {"reference": card} if card else None)
    entries = card | values
    lines = [[name.replace("_", " "), cell(entries, name)] for name in entries]
    print_table(f"statistics of {card.get('data', cfg['from'])}", ("", ""), lines, words=(0, 1))
    print_files(*([] if target is None else [target]), run.summary_file)
