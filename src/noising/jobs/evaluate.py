"""`evaluate`: a checkpoint's bound on its test set, by any estimator; or its samples, by any sampler."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from noising.build import build_evaluation_trainer, build_module
from noising.configuration import ConfigError
from noising.data.image_data import SPLITS
from noising.jobs.evaluate_samples import evaluate_samples
from noising.jobs.summary import print_summary, recording, require_same_options
from noising.secrets import without_secrets
from noising.trained import load
from noising.training.ema import EMA
from noising.training.progress import StepProgress
from noising.training.record import Record
from noising.training.run import Run

__all__ = ["evaluate"]


def evaluate(cfg: DictConfig, run_dir: Path) -> None:
    """Measure the averaged weights of a checkpoint: their bound, or with a sampler in the config their samples."""
    run = Run(run_dir)
    if cfg.resume:
        config = without_secrets(cfg)
        require_same_options(run, config, free=("device", "devices", "trainer", "logger"))
    if cfg.resume and run.status == "finished":
        print(f"{os.path.relpath(run.path)} is finished")
    elif cfg.get("sampler") is None:
        _evaluate_bound(cfg, run)
    else:
        evaluate_samples(cfg, run)


def _evaluate_bound(cfg: DictConfig, run: Run) -> None:
    if cfg.get("guidance") is not None:
        raise ConfigError("guidance changes samples, not the bound: add sampler=ddim, say")
    _require_splits(cfg)
    trained = load(cfg.checkpoint)
    config = OmegaConf.merge(trained.config, {"bound": None}, {"bound": cfg.bound})
    assert isinstance(config, DictConfig)
    module = build_module(config, trained.data)
    module.load_state_dict(trained.checkpoint["state_dict"])
    module.restored_step = trained.step
    ema = EMA(trained.weights["decay"])
    ema.load(trained.checkpoint)
    record = Record(run, trained.data, ema, source={"checkpoint": str(trained.path)})
    trainer = build_evaluation_trainer(cfg, run, [ema, StepProgress(), record])
    with recording(run, without_secrets(cfg), trainer):
        for split in cfg.splits:
            module.test.split = trained.data.tested = split
            trainer.test(module, trained.data, verbose=False)
    if trainer.is_global_zero:
        print_summary(run)


def _require_splits(cfg: DictConfig) -> None:
    if not OmegaConf.is_list(cfg.splits) or not cfg.splits or any(split not in SPLITS for split in cfg.splits):
        raise ConfigError(f"splits must be a list of {', '.join(SPLITS)}, got {cfg.splits}: e.g. splits=[test]")
