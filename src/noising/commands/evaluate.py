"""`evaluate`: the bound of a trained model by any estimator, or the quality of its samples by any sampler."""

import time
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from noising.commands.loggers import open_results
from noising.commands.sample_jobs import SampleJob, SampleShards
from noising.commands.tables import print_files, print_quality, print_summary, relative
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors
from noising.experiment import Experiment, build_quality, evaluation_trainer
from noising.plots.grids import sample_grid, save_png
from noising.plots.samples import neighbour_rows
from noising.runs.declarations import measurements
from noising.runs.folder import Run
from noising.runs.resume import require_same_options
from noising.runs.status import run_status
from noising.trained import load
from noising.training.callbacks.quality import COST
from noising.training.callbacks.results import ResultsCallback
from noising.training.checkpoint_content import require_entries, require_weights
from noising.training.ema import EMA
from noising.training.progress import StepProgress


def evaluate(cfg: DictConfig, run_dir: Path) -> None:
    """Evaluate the averaged weights of a checkpoint: their bound, or their samples where the config has a sampler."""
    run = Run(run_dir)
    if cfg.resume:
        require_same_options(run, without_secrets(cfg), may_differ=("device", "devices", "trainer", "logger", "tags"))
    if cfg.resume and run.status == "finished":
        print(f"{relative(run.path)} is finished")
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
    writer = ResultsCallback(results, trained.data, ema, source={"checkpoint": str(trained.path)})
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
        began = time.perf_counter()
        quality.begin(job.devices[0])
        quality.update(range(quality.total), images, torch.ones(quality.total, dtype=torch.bool))
        numbers = quality.compute(job.class_labels(range(quality.total)))
        cost = {
            "evaluations_per_image": job.evaluations,
            "seconds_per_image": shards.seconds / quality.total,
            "seconds_of_metrics": time.perf_counter() - began,
        }
        card = {**job.card, **quality.card}
        cards = {f"test/{name}": card for name in measurements(numbers)}
        results.write_all({f"test/{name}": value for name, value in (numbers | cost).items()}, trained.step, cards)
        save_png(run.samples_image, sample_grid(trained.data.to_8bit(images), job.classes))
        results.write_image("samples", run.samples_image, trained.step, job.description)
        if (beside := quality.neighbours()) is not None:
            neighbour_rows(run.neighbours_image, *beside)
            caption = "the samples most like a training image"
            results.write_image("neighbours", run.neighbours_image, trained.step, caption)
        shards.remove()
    print_quality(numbers, card, quality.declared)
    print(f"{job.evaluations} network evaluations and {1000 * cost['seconds_per_image']:.1f} ms per sample\n")
    print_files(*(file for file in (run.samples_image, run.neighbours_image, run.summary_file) if file.exists()))
