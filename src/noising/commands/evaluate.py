"""`evaluate`: the bound of a trained model, the quality of its samples by any sampler, or that of given images."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from noising.commands.devices import find_device
from noising.commands.given_samples import GivenSamples
from noising.commands.loggers import open_results
from noising.commands.sample_jobs import SampleJob, SampleShards
from noising.commands.tables import print_files, print_quality, print_summary, relative
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors
from noising.experiment import Experiment, build_quality, evaluation_trainer
from noising.metrics.measurement import SampleQuality
from noising.plots.grids import sample_grid, save_png
from noising.plots.samples import neighbour_rows
from noising.runs.declarations import measurements
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.runs.resume import require_same_options
from noising.runs.status import run_status
from noising.trained import load
from noising.training.callbacks.quality import COST
from noising.training.callbacks.results import ResultsCallback
from noising.training.checkpoint_content import require_entries, require_weights
from noising.training.ema import EMA
from noising.training.progress import StepProgress


def evaluate(cfg: DictConfig, run_dir: Path) -> None:
    """Evaluate the averaged weights of a checkpoint: their bound, or their samples where the config has a sampler.

    With `samples` in the config, images of any origin are measured instead.
    """
    run = Run(run_dir)
    if cfg.checkpoint is None and cfg.samples is None:
        raise ConfigError("checkpoint has no value: add checkpoint=..., or samples=PATH data=NAME for images alone")
    if cfg.samples is None and cfg.get("data") is not None:
        raise ConfigError("data: a model is evaluated on the data that it was trained on: leave data out")
    if cfg.resume:
        require_same_options(run, without_secrets(cfg), may_differ=("device", "devices", "trainer", "logger", "tags"))
    if cfg.resume and run.status == "finished":
        print(f"{relative(run.path)} is finished")
    elif cfg.samples is not None:
        evaluate_given(cfg, run)
    elif cfg.get("sampler") is None:
        _evaluate_bound(cfg, run)
    else:
        evaluate_samples(cfg, run)


def _evaluate_bound(cfg: DictConfig, run: Run) -> None:
    if cfg.get("guidance") is not None:
        raise ConfigError("guidance changes samples, not the bound: add a sampler, such as sampler=ddim")
    trained = load(cfg.checkpoint)
    config = OmegaConf.merge(trained.config, {"bound": None}, {"bound": cfg.bound})
    assert isinstance(config, DictConfig)
    with config_errors(f"checkpoint={cfg.checkpoint}: its config"):
        require_entries(config, ("validation_bound", "optimizer", "lr_schedule", "trainer"))
    module = Experiment(config, trained.data).module
    with config_errors(f"checkpoint={cfg.checkpoint}"):
        state = trained.checkpoint["state_dict"]
        require_weights(module.denoiser, trained.checkpoint["ema"], state, module.state_dict())
        module.load_state_dict(state)
    module.restored_step, module.init_from = trained.step, trained.checkpoint.get("init_from")
    ema = EMA(trained.weights["decay"])
    ema.load(trained.checkpoint)
    results = open_results(run, cfg, "evaluate")
    source = {"checkpoint": str(trained.path), **trained.converted}
    writer = ResultsCallback(results, trained.data, ema, source=source)
    trainer = evaluation_trainer(cfg, results, [ema, StepProgress(), writer])
    with run_status(results, without_secrets(cfg), trainer.is_global_zero):
        for split in cfg.splits:
            module.test.split = trained.data.tested = split
            trainer.test(module, trained.data, verbose=False)
    if trainer.is_global_zero:
        print_summary(run)


def evaluate_samples(cfg: DictConfig, run: Run) -> None:
    """Draw samples and leave their metrics, test/NAME with error, baseline and card, in summary.json."""
    if cfg.get("metrics") is None:
        raise ConfigError("sampler=NAME measures samples: choose a metric, metrics=fd, fid or fd_dinov2")
    metric = make(cfg.metrics, "metrics", object)
    trained = load(cfg.checkpoint)
    quality = build_quality(cfg.metrics, metric, trained.data)
    results = open_results(run, cfg, "evaluate")
    job = SampleJob(OmegaConf.create({**cfg, "n": quality.total}), trained)
    shards = SampleShards(run.path / "shards", job)
    shards.require_same()
    with run_status(results, without_secrets(cfg)):
        results.declare({**quality.declared, **COST})
        images = shards.fill()
        numbers, seconds = _measure(quality, images, job.class_labels(range(quality.total)), job.devices[0])
        cost = {
            "evaluations_per_image": job.evaluations,
            "seconds_per_image": shards.seconds / quality.total,
            "seconds_of_metrics": seconds,
        }
        card = {**job.card, **quality.card}
        _write(results, numbers, cost, card, trained.step)
        _draw(results, quality, images, job.classes, trained.step, job.description)
        shards.remove()
    print_quality(numbers, card, quality.declared)
    print(f"{job.evaluations} network evaluations and {1000 * cost['seconds_per_image']:.1f} ms per sample\n")
    _print_files(run)


def evaluate_given(cfg: DictConfig, run: Run) -> None:
    """Measure the images of cfg.samples, which were made by anything, as samples drawn here are."""
    for option, why in (
        ("checkpoint", "images are measured whoever made them"),
        ("sampler", "images are there, and none is drawn"),
        ("guidance", "images are there, and none is drawn"),
    ):
        if cfg.get(option) is not None:
            raise ConfigError(f"samples={cfg.samples}: {why}: leave {option} out")
    for option, wanted in (("data", "data=cifar10, the real images they are held against"), ("metrics", "metrics=fid")):
        if cfg.get(option) is None:
            raise ConfigError(f"samples={cfg.samples}: {option} has no value: add {wanted}")
    device = find_device(cfg.device)
    metric = make(cfg.metrics, "metrics", object)
    given = GivenSamples(cfg.samples)
    data = Experiment(cfg).data
    given.require_fitting(data)
    quality = build_quality(cfg.metrics, metric, data)
    samples = given.read(data, quality.count, quality.repeats)
    results = open_results(run, cfg, "evaluate")
    with run_status(results, without_secrets(cfg)):
        results.declare({**quality.declared, **COST})
        numbers, seconds = _measure(quality, samples.pixels, samples.class_labels, device)
        card = {**samples.card, **quality.card}
        _write(results, numbers, {"seconds_of_metrics": seconds}, card, 0)
        _draw(results, quality, samples.pixels, 0, 0, f"from {cfg.samples}")
    print_quality(numbers, card, quality.declared)
    print()
    _print_files(run)


def _measure(
    quality: SampleQuality, images: Tensor, class_labels: Tensor | None, device: torch.device
) -> tuple[dict[str, float], float]:
    """The numbers of images (n, C, H, W) uint8 grey levels, and the seconds that measuring took."""
    began = time.perf_counter()
    quality.begin(device)
    quality.update(range(quality.total), images, torch.ones(quality.total, dtype=torch.bool))
    numbers = quality.compute(class_labels)
    return numbers, time.perf_counter() - began


def _write(
    results: Results, numbers: Mapping[str, float], cost: Mapping[str, float], card: Mapping[str, Any], step: int
) -> None:
    """Write the numbers, with their card, and the cost, as test/NAME."""
    cards = {f"test/{name}": card for name in measurements(numbers)}
    results.write_all({f"test/{name}": value for name, value in {**numbers, **cost}.items()}, step, cards)


def _draw(results: Results, quality: SampleQuality, images: Tensor, classes: int, step: int, description: str) -> None:
    """Draw a grid of the images, and those most like a training image beside these."""
    run = results.run
    save_png(run.samples_image, sample_grid(quality.data.to_8bit(images), classes))
    results.write_image("samples", run.samples_image, step, description)
    if (beside := quality.neighbours()) is not None:
        neighbour_rows(run.neighbours_image, *beside)
        results.write_image("neighbours", run.neighbours_image, step, "the samples most like a training image")


def _print_files(run: Run) -> None:
    print_files(*(file for file in (run.samples_image, run.neighbours_image, run.summary_file) if file.exists()))
