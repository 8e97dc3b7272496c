"""The samples of a checkpoint by one sampler: how good they are, how sure that is, and what they cost."""

from __future__ import annotations

import os
import time

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from noising.configuration import ConfigError, make
from noising.jobs.drawing import Drawing, Shards
from noising.jobs.quality_table import print_quality
from noising.jobs.summary import recording
from noising.secrets import without_secrets
from noising.trained import load
from noising.training.figures import sample_grid, save_png
from noising.training.protocols import Protocol
from noising.training.run import Run
from noising.training.sample_quality import SampleQuality, measured

__all__ = ["evaluate_samples"]


def evaluate_samples(cfg: DictConfig, run: Run) -> None:
    """Leave each number of the metrics, as test/NAME with its error, yardstick and card, in summary.json."""
    if cfg.get("metrics") is None:
        raise ConfigError("with sampler=NAME samples are measured, by metrics=fd, fid or fd_dinov2: choose one")
    protocol = make(cfg.metrics, "metrics", Protocol)
    trained = load(cfg.checkpoint)
    quality = SampleQuality(protocol, trained.data)
    drawing = Drawing(OmegaConf.create({**cfg, "n": quality.total}), trained)
    shards = Shards(run.path / "shards", drawing)
    shards.require_same()
    with recording(run, without_secrets(cfg)):
        shards.fill()
        images = shards.read()
        quality.references.extractor.to(drawing.devices[0])
        began = time.perf_counter()
        features = quality.references.features(images)
        numbers = quality.measure(features, drawing.asked(range(quality.total)))
        cost = {
            "evaluations_per_image": drawing.evaluations,
            "seconds_per_image": shards.seconds / quality.total,
            "seconds_of_metrics": time.perf_counter() - began,
        }
        card = {**drawing.card, **quality.card}
        save_png(run.samples_image, sample_grid(trained.data.to_8bit(images), drawing.classes))
        quality.draw_likest(run.neighbours_image, features, images)
        cards = {f"test/{name}": card for name in measured(numbers)}
        run.record({f"test/{name}": value for name, value in (numbers | cost).items()}, cards)
        shards.remove()
    print_quality(Console(soft_wrap=True), numbers, card)
    print(f"{drawing.evaluations} network evaluations and {1000 * cost['seconds_per_image']:.1f} ms a sample\n")
    for path in (run.samples_image, run.neighbours_image, run.summary_file):
        print(os.path.relpath(path))
