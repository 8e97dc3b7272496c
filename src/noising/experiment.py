"""From a config to the objects it describes: the one place where the parts meet.

Each group of the config becomes the constructor argument of its name. What one part must know of another (channels,
grey levels, T) is handed on here, in code, so that no YAML repeats it and no part is built twice.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from noising.config.instantiate import make, require_whole
from noising.config.secrets import without_secrets
from noising.data.image_data import ImageData
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.likelihood.estimators import BoundEstimator
from noising.diffusion.noise_labels import NoiseLabel
from noising.diffusion.objectives import Objective
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.recipe import Recipe, conflicts
from noising.diffusion.samplers import Sampler
from noising.diffusion.schedules import Schedule
from noising.diffusion.times import TimeSampler
from noising.diffusion.variances import ReverseVariance
from noising.errors import ConfigError, config_errors
from noising.metrics.quality import ClassifierDistance, QualityMetric, SampleQuality
from noising.runs.folder import Run
from noising.training.callbacks.variance_fit import VarianceFit
from noising.training.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from noising.training.ema import EMA
from noising.training.loggers import build_loggers
from noising.training.module import DiffusionModule
from noising.training.progress import StepProgress
from noising.training.safety.preemption import Preemption
from noising.training.validation import BoundEvaluation

__all__ = [
    "MAX_DEVICES",
    "build_callbacks",
    "build_data",
    "build_denoiser",
    "build_model",
    "build_module",
    "build_quality",
    "build_recipe",
    "build_sampler",
    "build_trainer",
    "num_classes",
    "require_compatible",
]


T = TypeVar("T")

log = logging.getLogger(__name__)


MAX_DEVICES = 1024
"""Of one machine; Lightning lists them before it looks whether they are there."""


def build_data(cfg: DictConfig) -> ImageData:
    """The data set, read: its facts are known."""
    data = make(cfg.data, "data", ImageData)
    try:
        data.prepare_data()
        data.setup()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return data


def build_model(cfg: DictConfig, data: ImageData, recipe: Recipe) -> torch.nn.Module:
    """The network; its first weights are keyed by the seed."""
    require_whole(cfg, "seed", least=0)
    torch.manual_seed(cfg.seed)
    return make(
        cfg.model,
        "model",
        torch.nn.Module,
        channels=data.channels,
        out_channels=data.channels * recipe.variance.outputs,
        resolution=data.resolution,
        classes=num_classes(cfg, data),
    )


def num_classes(cfg: DictConfig, data: ImageData) -> int:
    """How many classes the network is told apart; 0 without `label_dropout`."""
    dropout = cfg.get("label_dropout")
    if dropout is None:
        return 0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"label_dropout must be null (no classes) or a number in [0, 1), got {dropout}")
    if not data.classes:
        raise ConfigError(f"label_dropout={dropout}: {data.name} has no classes; use label_dropout=null")
    return data.classes


def build_denoiser(cfg: DictConfig, data: ImageData) -> Denoiser:
    """Network + schedule + parameterization + variance + noise label."""
    recipe = build_recipe(cfg, data.resolution, data.levels)
    return recipe.denoiser(build_model(cfg, data, recipe))


def build_module(cfg: DictConfig, data: ImageData) -> DiffusionModule:
    """The LightningModule of a config."""
    recipe = build_recipe(cfg, data.resolution, data.levels)

    def evaluation(group: str, split: str) -> BoundEvaluation:
        estimator = make(cfg[group], group, BoundEstimator)
        return BoundEvaluation(estimator, recipe.decoder, cfg.timesteps, split)

    require_whole(cfg, "trainer.max_steps", least=1)
    optimizer: Any = make(cfg.optimizer, "optimizer", object)
    lr_schedule: Any = make(cfg.lr_schedule, "lr_schedule", object, max_steps=cfg.trainer.max_steps)
    with config_errors("optimizer"):
        optimizer([torch.nn.Parameter(torch.zeros(1))])  # its options are checked only when it is made
    with config_errors("lr_schedule"):
        lr_schedule(0)
    return DiffusionModule(
        recipe.denoiser(build_model(cfg, data, recipe)),
        recipe.objective,
        recipe.times,
        optimizer,
        lr_schedule,
        validation=evaluation("validation_bound", "val"),
        test=evaluation("bound", "test"),
        seed=cfg.seed,
        classes=num_classes(cfg, data),
        label_dropout=cfg.get("label_dropout") or 0.0,
        skip_nonfinite_steps=_switch(cfg, "skip_nonfinite_steps"),
    )


def _switch(cfg: DictConfig, option: str) -> bool:
    value = cfg.get(option, False)  # the configs of older checkpoints may lack it
    if not isinstance(value, bool):
        raise ConfigError(f"{option} must be true or false, got {value}")
    return value


def build_sampler(cfg: DictConfig, timesteps: int, schedule: Schedule | None = None) -> Sampler:
    """The sampler, with the grid it steps on; timesteps: T of the chain that was trained.

    schedule: on which the steps are tried before any work.
    """
    grid: Any = make(cfg.grid, "grid", object, timesteps=timesteps)
    sampler = make(cfg.sampler, "sampler", Sampler, grid=grid)
    if schedule is not None:
        with config_errors("grid"):
            sampler.chain(schedule)
    return sampler


def build_quality(cfg: DictConfig, data: ImageData) -> SampleQuality | None:
    """What measures samples, before any work; None without metrics, and where the default ones need labels."""
    if cfg.get("metrics") is None:
        return None
    protocol = make(cfg.metrics, "metrics", QualityMetric)
    if isinstance(protocol, ClassifierDistance) and not data.classes:
        log.info("samples are not measured: metrics=fd needs labels, and %s has none; metrics=fid does not", data.name)
        return None
    return SampleQuality(protocol, data)


def build_callbacks(cfg: DictConfig, run: Run, data: ImageData, schedule: Schedule) -> list[Callback]:
    """The average, the progress bar, the checkpoints, and what the `callbacks` group names."""
    require_whole(cfg, "checkpoint_every_n_steps", least=1)
    if "keep_checkpoints" in cfg:
        require_whole(cfg, "keep_checkpoints", least=1)
    ema = make(cfg.ema, "ema", EMA)
    facts = {
        "run": run,
        "data": data,
        "ema": ema,
        "seed": cfg.seed,
        "classes": num_classes(cfg, data),
        "sampler": build_sampler(cfg, cfg.timesteps, schedule),
        "config": without_secrets(cfg),
        "quality": build_quality(cfg, data),
    }
    named = make(cfg.get("callbacks") or {}, "callbacks", dict, **facts)
    best, last = checkpoint_callbacks(run, cfg.checkpoint_every_n_steps, cfg.get("keep_checkpoints", 1))
    # the average first: it is swapped in before, and out after, whatever the others do with the weights
    return [
        ema,
        VarianceFit(data, ema),
        StepProgress(),
        *(callback for callback in named.values() if callback is not None),  # callbacks.samples=null
        best,
        last,
        Preemption(last),
    ]


def build_trainer(cfg: DictConfig, run: Run, data: ImageData, callbacks: list[Callback]) -> Trainer:
    """The Trainer; everything it counts is an optimizer step, the epoch never ends."""
    options = cfg.trainer
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        require_whole(cfg, f"trainer.{name}", least=1)
    if isinstance(options.get("devices"), int) and options.devices > MAX_DEVICES:
        raise ConfigError(f"trainer.devices={options.devices} is more than the {MAX_DEVICES} a machine may have")
    if not OmegaConf.is_list(cfg.get("tags", OmegaConf.create([]))) or any(not isinstance(t, str) for t in cfg.tags):
        raise ConfigError(f"tags must be a list of words, got {cfg.tags}: e.g. tags=[first,try]")
    if options.get("max_epochs") is not None:
        raise ConfigError("trainer.max_epochs: training counts optimizer steps; use trainer.max_steps")
    clip = options.get("gradient_clip_val")
    if isinstance(clip, int | float) and clip < 0:
        raise ConfigError(f"trainer.gradient_clip_val must not be negative, got {clip}")
    if str(options.get("precision")).startswith("16") and clip and cfg.optimizer.get("fused"):
        raise ConfigError(
            f"trainer.precision={options.precision} cannot clip with optimizer.fused=true: set it to false"
        )
    extra: dict[str, Any] = {
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "default_root_dir": str(run.path),
        "plugins": [AtomicCheckpointIO()],
        "callbacks": callbacks,
        "logger": build_loggers(run, without_secrets(cfg), make(cfg.get("logger") or {}, "logger", dict)),
    }
    node = {**options, "val_check_interval": options.val_check_interval * options.accumulate_grad_batches}
    trainer = _trainer(node, extra)
    devices, accumulate = trainer.num_devices * trainer.num_nodes, trainer.accumulate_grad_batches
    if data.batch_size % (devices * accumulate):
        raise ConfigError(
            f"data.batch_size={data.batch_size} does not divide among {devices} devices and "
            f"trainer.accumulate_grad_batches={accumulate}: change it or them"
        )
    return trainer


def build_evaluation_trainer(cfg: DictConfig, run: Run, callbacks: list[Callback]) -> Trainer:
    """A Trainer that only tests."""
    return _trainer(
        {**cfg.trainer},
        {
            "use_distributed_sampler": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": str(run.path),
            "callbacks": callbacks,
            "logger": build_loggers(run, without_secrets(cfg), make(cfg.get("logger") or {}, "logger", dict)),
        },
    )


def _trainer(node: dict[str, Any], facts: dict[str, Any]) -> Trainer:
    for part in ("pytorch", "fabric.utilities.distributed"):  # notes on hardware, checkpoints and ranks
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    # true of Lightning's own loops, not of data in memory and an order that is a function of the step
    for words in (
        "The '.*dataloader' does not have many workers",
        "You're resuming from a checkpoint that ended",
        "torch.distributed.nn.functional.all_gather is deprecated",
    ):
        warnings.filterwarnings("ignore", words)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec", FutureWarning)
    try:
        return make(node, "trainer", Trainer, **facts)
    except (MisconfigurationException, RuntimeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def build_recipe(cfg: DictConfig, resolution: int, levels: int) -> Recipe:
    """The recipe of a config, for images of that resolution and number of grey levels."""

    require_whole(cfg, "timesteps", least=1, most=1_000_000)

    def part(group: str, kind: type[T], **facts: Any) -> T:
        return make(cfg[group], group, kind, timesteps=cfg.timesteps, **facts)

    decoder = part("decoder", Decoder, levels=levels)
    return Recipe(
        part("schedule", Schedule, resolution=resolution),
        part("parameterization", Parameterization),
        part("noise_label", NoiseLabel),
        part("variance", ReverseVariance),
        part("times", TimeSampler),
        part("objective", Objective, weighting=part("weighting", object), decoder=decoder),
        decoder,
    )


def require_compatible(cfg: DictConfig) -> None:
    """Raise ConfigError, with the reason, if the parts of the config cannot work together."""
    for conflict in conflicts(build_recipe(cfg, resolution=64, levels=256)):
        raise ConfigError(conflict)
