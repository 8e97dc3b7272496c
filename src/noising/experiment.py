"""From a config to the objects it describes: the one place where the parts meet.

Each group of the config becomes the constructor argument of its name. What one part must know of another (channels,
grey levels, T) is handed on here, in code, so that no YAML repeats it.
"""

import inspect
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import Dataset

from noising.config.instantiate import locate, make, make_function, parameters, said, tried
from noising.config.options import MAX_DEVICES
from noising.config.secrets import without_secrets
from noising.config.theory import build_recipe, build_sampler
from noising.data.augmentation import Augmentation
from noising.data.image_data import ImageData
from noising.data.torch_dataset import Indexed, TorchDataset
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.drawing import class_labels_for, require_drawing
from noising.diffusion.likelihood.estimators import BoundEstimator
from noising.diffusion.networks import adapted, log_variance_of, require_fitting, takes_class
from noising.diffusion.objectives import require_losses
from noising.diffusion.recipe import Recipe, rising, uneven
from noising.diffusion.samplers import Sampler
from noising.errors import ConfigError
from noising.metrics.measurement import SampleQuality, sample_quality
from noising.metrics.reference_features import UnmeasurableError
from noising.runs.results import Results
from noising.training.callbacks.forecast import EVALUATIONS_OF_AN_IMAGE, Forecast
from noising.training.callbacks.lightning_callbacks import require_usable
from noising.training.callbacks.quality import COST
from noising.training.callbacks.variance_fit import VarianceFit
from noising.training.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from noising.training.ema import EMA
from noising.training.hooks import leave_out_unused
from noising.training.loggers import CSVMetrics
from noising.training.module import TRAINING, DiffusionModule
from noising.training.optimizers import (
    MakeOptimizer,
    MakeScheduler,
    MuonWithAdamW,
    by_factor,
    require_lasting,
    require_stepping,
)
from noising.training.progress import StepProgress
from noising.training.safety.gradient_sums import sum_in_one_order
from noising.training.safety.preemption import Preemption
from noising.training.safety.rendezvous import meet_in_private
from noising.training.validation import BoundEvaluation, bound_declarations

log = logging.getLogger(__name__)


class Experiment:
    """The parts that a config describes, each built once, when it is first asked for.

    Raises ConfigError, in one line that begins with the option, for what cannot be built or cannot work together.
    """

    def __init__(self, config: DictConfig, data: ImageData | None = None, downloads: bool = True) -> None:
        """data: the data set, if it was read before; downloads: whether files of it that are missing are fetched."""
        self.config, self._downloads = config, downloads
        if data is not None:
            self.data = self._unread_data = data

    @cached_property
    def _unread_data(self) -> ImageData:
        made = make(self.config.data, "data", object)
        data = TorchDataset(cast(Indexed, made)) if isinstance(made, Dataset) else made
        if not isinstance(data, ImageData):
            raise ConfigError(f"data: expected an ImageData of noising.data or a torch Dataset, got {_type(made)}")
        data.downloads = self._downloads
        return data

    @cached_property
    def data(self) -> ImageData:
        """The data set, read: its facts are known."""
        try:
            self._unread_data.prepare_data()
            self._unread_data.setup()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return self._unread_data

    @cached_property
    def recipe(self) -> Recipe:
        """The parts of the theory; what cannot work together is told before an image is read, where that can be."""
        resolution, levels = self._unread_data.declared or (self.data.resolution, self.data.levels)
        recipe = build_recipe(self.config, resolution, levels)
        if (fault := rising(recipe.schedule)) is not None:
            raise ConfigError(fault)
        return recipe

    @cached_property
    def num_classes(self) -> int:
        """The number of classes that the network is told.

        It is 0 without `label_dropout`, where the data have none, and for a network of the user's that takes none.
        """
        if self.config.get("label_dropout") is None:
            return 0
        family = locate(self.config.model.get("_target_"), "model")
        unable = isinstance(family, type) and issubclass(family, torch.nn.Module) and not takes_class(family)
        return 0 if unable else self.data.classes

    @cached_property
    def augmentation(self) -> Augmentation | None:
        """The augmentation of the training images, None without."""
        node = self.config.get("augmentation")
        return None if node is None else make(node, "augmentation", Augmentation)

    @cached_property
    def denoiser(self) -> Denoiser:
        """The network in its recipe; its first weights are keyed by the seed."""
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            network = make(self.config.model, "model", torch.nn.Module, **self.facts_of_network)
        return recipe.denoiser(self._fitting(network))

    @property
    def facts_of_network(self) -> dict[str, Any]:
        """The facts that a network is made for, under the names that its constructor may have for them."""
        data, classes = self.data, self.num_classes
        embeddings = classes + 1 if classes else None  # the last is that of no class
        return {
            **dict.fromkeys(("channels", "in_channels"), data.channels),
            "out_channels": data.channels * self.recipe.variance.outputs,
            **dict.fromkeys(("resolution", "sample_size", "image_size", "img_size", "input_size"), data.resolution),
            "classes": classes,
            **dict.fromkeys(("num_classes", "num_class_embeds"), embeddings),
            "augmentation_labels": self._augmentation_labels,
        }

    @property
    def _augmentation_labels(self) -> int:
        return 0 if self.augmentation is None else self.augmentation.labels

    def _fitting(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network as the denoiser calls it; a user's own is tried on an image first: ConfigError if it fails."""
        facts, recipe, labels = self.facts_of_network, self.recipe, self._augmentation_labels
        if type(network).__module__.startswith("noising."):
            takes = "augmentation_labels" in parameters(type(network))
            if labels and not (takes and self.config.model.get("augmentation_labels", labels) == labels):
                raise ConfigError(
                    f"augmentation: {type(network).__name__} does not take its {labels} labels: use a model that does, "
                    "such as model=ddpmpp, or augmentation=null"
                )
            return network
        shape = (facts["channels"], facts["out_channels"], facts["resolution"], facts["classes"], labels)
        noise_label = recipe.noise_label(recipe.schedule(torch.tensor([0.5, 1.0], dtype=torch.float64)))
        with _users("model", network):
            network = adapted(network, self.num_classes)
            require_fitting(network, noise_label.flatten().float(), *shape)
        return network

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler, tried on the schedule; a user's own by its first step."""
        sampler = build_sampler(self.config, self.config.timesteps, self.recipe.schedule)
        require_sampler(sampler, self.denoiser, self._shape, self.num_classes)
        return sampler

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.data.channels, self.data.resolution, self.data.resolution

    @cached_property
    def train_batches(self) -> int | None:
        """The number of batches of an epoch where training is limited to fewer than all images, else None."""
        for option in ("overfit_batches", "limit_train_batches"):
            limit, images = self.config.trainer.get(option), len(self.data.train.pixels)
            if not limit or (limit == 1.0 and isinstance(limit, float)):
                continue
            batches = limit if isinstance(limit, int) else int(limit * images / self.data.batch_size)
            if not batches:
                raise ConfigError(
                    f"trainer.{option}={limit}: this part of the {images} training images is less than a batch of "
                    f"{self.data.batch_size}: raise it, or give a number of batches"
                )
            return None if batches * self.data.batch_size >= images else int(batches)
        return None

    @cached_property
    def max_steps(self) -> int:
        """The number of optimizer steps of the training: trainer.max_steps, or those of trainer.max_epochs."""
        epochs = self.config.trainer.get("max_epochs")
        if epochs is None:
            return int(self.config.trainer.max_steps)
        images, size = len(self.data.train.pixels), self.data.batch_size
        return int(epochs * self.train_batches if self.train_batches else -(-epochs * images // size))

    @cached_property
    def module(self) -> DiffusionModule:
        """The LightningModule."""
        cfg, recipe = self.config, self.recipe
        if (warning := uneven(recipe)) is not None:
            log.warning(warning)
        validation, test = self._bound("validation_bound", "val"), self._bound("bound", "test")
        optimizer, lr_schedule = self._optimizer, self._lr_schedule
        self._require_uncertainty()
        # what they are called with, and what they give, is known only when they are called
        some = [torch.nn.Parameter(torch.zeros(size)) for size in ((1, 1), (1,))]
        trial = tried("optimizer", Optimizer, optimizer, some)
        scheduler = tried("lr_schedule", LRScheduler, lr_schedule, trial)
        tried("optimizer", object, require_stepping, trial, some)
        tried("lr_schedule", object, require_lasting, scheduler, self.max_steps)
        if not type(recipe.objective).__module__.startswith("noising."):
            with _users("objective", recipe.objective):
                labels = self._augmentation_labels
                require_losses(recipe.objective, self.denoiser, self._shape, self.num_classes, labels)
        return DiffusionModule(
            self.denoiser,
            recipe.objective,
            recipe.times,
            optimizer,
            lr_schedule,
            validation=validation,
            test=test,
            seed=cfg.seed,
            classes=self.num_classes,
            label_dropout=cfg.get("label_dropout") or 0.0,
            skip_nonfinite_steps=cfg.get("skip_nonfinite_steps", False),
            augmentation=self.augmentation,
        )

    def _require_uncertainty(self) -> None:
        """Raise ConfigError for a loss that reads an uncertainty which the network does not have.

        Where the loss reads none, the network's is not trained: other ranks would wait for its gradient.
        """
        objective, uncertainty = self.recipe.objective, log_variance_of(self.denoiser.model)
        if objective.trains_uncertainty and uncertainty is None:
            raise ConfigError(
                f"objective: {_type(objective)} needs a network that estimates its uncertainty, such as model=edm2_64; "
                "use it, or objective=regression"
            )
        if isinstance(uncertainty, torch.nn.Module):
            uncertainty.requires_grad_(objective.trains_uncertainty)

    @property
    def _optimizer(self) -> MakeOptimizer:
        """The optimizer, by `_target_` with or without `_partial_`: its first argument is the parameters."""
        optimizer: Any = make({**self.config.optimizer, "_partial_": True}, "optimizer", object)
        if isinstance(optimizer, partial) and optimizer.func is getattr(torch.optim, "Muon", None):  # from torch 2.9 on
            return partial(MuonWithAdamW, **optimizer.keywords)
        return cast(MakeOptimizer, optimizer)

    @property
    def _lr_schedule(self) -> MakeScheduler:
        """A scheduler of torch's, or a function of the step that gives the factor of the optimizer's own rate."""
        node = self.config.lr_schedule
        target = locate(node.get("_target_"), "lr_schedule")
        scheduler = inspect.isclass(target) and issubclass(target, LRScheduler)
        if scheduler and issubclass(target, ReduceLROnPlateau):  # type: ignore[arg-type]
            raise ConfigError(
                "lr_schedule: ReduceLROnPlateau depends on a measured number; use one that depends on the step alone"
            )
        steps = dict.fromkeys(("max_steps", "T_max", "total_steps", "total_iters"), self.max_steps)
        if scheduler:
            return cast(MakeScheduler, make({**node, "_partial_": True}, "lr_schedule", object, **steps))
        made = make_function(node, "lr_schedule", **steps, batch_size=self.data.batch_size)
        for step in (0, self.max_steps):
            factor = tried("lr_schedule", float, lambda step: float(made(step)), step)
            if not 0 <= factor < math.inf:
                raise ConfigError(f"lr_schedule: the factor of step {step} is {factor}: a number from 0 is expected")
        return by_factor(made)

    def _bound(self, group: str, split: str) -> BoundEvaluation:
        estimator = make(self.config[group], group, BoundEstimator)
        return BoundEvaluation(estimator, self.recipe.decoder, self.config.timesteps, split)

    @cached_property
    def quality(self) -> SampleQuality | None:
        """The measure of samples; None without metrics or a callback for them, and where the data set allows none."""
        if self.config.get("metrics") is None or not self._measured:
            return None
        metric = make(self.config.metrics, "metrics", object)
        try:
            return build_quality(self.config.metrics, metric, self.data, self._most_samples)
        except UnmeasurableError as why:
            log.info("samples are not measured: %s", why)
            return None

    @property
    def _most_samples(self) -> int:
        """As many samples as cost half of the training's own network evaluations: more are measured only if asked."""
        trained = EVALUATIONS_OF_AN_IMAGE * self.max_steps * self.data.batch_size
        return trained // 2 // self.sampler.evaluations(self.denoiser)

    @property
    def _measured(self) -> bool:
        """Whether one of the callbacks is given the measure of samples: not with callbacks.quality=null."""
        nodes = (self.config.get("callbacks") or {}).values()
        targets = [node["_target_"] for node in nodes if isinstance(node, DictConfig) and "_target_" in node]
        return any("quality" in parameters(locate(target, "callbacks")) for target in targets)

    def callbacks(self, results: Results) -> list[Callback]:
        """The average, the progress bar, the checkpoints, and what the `callbacks` group names."""
        cfg = self.config
        ema = make(cfg.ema, "ema", EMA, batch_size=self.data.batch_size)
        facts = {
            "run": results.run,
            "results": results,
            "data": self.data,
            "ema": ema,
            "seed": cfg.seed,
            "classes": self.num_classes,
            "sampler": self.sampler,
            "config": without_secrets(cfg),
            "quality": self.quality,
        }
        named = make(cfg.get("callbacks") or {}, "callbacks", dict, **facts)
        require_usable(named)
        best, last = checkpoint_callbacks(results, cfg.checkpoint_every_n_steps, cfg.get("keep_checkpoints", 1))
        # the average first: it is swapped in before, and out after, whatever the others do with the weights
        return [
            ema,
            VarianceFit(self.data, ema),
            StepProgress(),
            Forecast(self.data, self.sampler),
            *(callback for callback in named.values() if callback is not None),  # callbacks.samples=null
            best,
            last,
            Preemption(last),
        ]

    def trainer(self, results: Results, callbacks: list[Callback]) -> Trainer:
        """The Trainer; everything it counts is an optimizer step, the epoch never ends."""
        cfg, options = self.config, self.config.trainer
        if isinstance(options.get("devices"), int) and options.devices > MAX_DEVICES:
            raise ConfigError(f"trainer.devices={options.devices} is more than the {MAX_DEVICES} a machine may have")
        clip = options.get("gradient_clip_val")
        if isinstance(clip, int | float) and clip < 0:
            raise ConfigError(f"trainer.gradient_clip_val must not be negative, got {clip}")
        if str(options.get("precision")).startswith("16") and clip and cfg.optimizer.get("fused"):
            raise ConfigError(
                f"trainer.precision={options.precision} cannot clip gradients with optimizer.fused=true: use "
                "optimizer.fused=false"
            )
        plugins = options.get("plugins") or []
        plugins = [plugins] if isinstance(plugins, str | DictConfig) else plugins
        facts: dict[str, Any] = {
            "max_epochs": -1,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "plugins": [AtomicCheckpointIO(), *make(plugins, "trainer.plugins", list)],
        }
        ours = ("max_epochs", "plugins", "overfit_batches", "limit_train_batches")
        node = {name: value for name, value in options.items() if name not in ours}
        node["max_steps"] = self.max_steps
        node["val_check_interval"] = options.val_check_interval * options.accumulate_grad_batches
        if options.get("overfit_batches"):
            node["limit_val_batches"] = options.overfit_batches
        trainer = _trainer(node, results, callbacks, **facts)
        self.data.train_batches = self.train_batches
        self.module.results = results
        devices, accumulate = trainer.num_devices * trainer.num_nodes, trainer.accumulate_grad_batches
        if self.data.batch_size % (devices * accumulate):
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} does not divide among {devices} devices and "
                f"trainer.accumulate_grad_batches={accumulate}: change one of them"
            )
        return trainer


def require_sampler(sampler: Sampler, denoiser: Denoiser, shape: Sequence[int], classes: int) -> None:
    """Raise ConfigError for a sampler of the user's own whose first step fails, or gives something else."""
    if not type(sampler).__module__.startswith("noising."):
        with _users("sampler", sampler):
            require_drawing(sampler, denoiser, shape, class_labels_for([0], classes))


@contextmanager
def _users(option: str, part: object) -> Iterator[None]:
    """Within it a part of the user's own is tried: whatever it raises is a ConfigError, and no generator has moved."""
    name = type(part).__name__
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except Exception as error:
        raise ConfigError(f"{option}: {name} cannot be used: {said(error)}") from error


def build_quality(node: DictConfig, metric: object, data: ImageData, most: int | None = None) -> SampleQuality:
    """The measuring of samples by a metric that was made of the node; ConfigError for one that cannot.

    most: upper limit of the number of samples that is a default.
    """
    options: Any = OmegaConf.to_container(node, resolve=True)
    return sample_quality(metric, data, options, {**TRAINING, **bound_declarations(""), **COST, "flow_nll": None}, most)


def evaluation_trainer(cfg: DictConfig, results: Results, callbacks: list[Callback]) -> Trainer:
    """A Trainer that only tests; cfg: that of `evaluate`."""
    return _trainer({**cfg.trainer}, results, callbacks, enable_checkpointing=False)


def _type(made: object) -> str:
    return "null" if made is None else type(made).__qualname__


class _Chatter(logging.Filter):
    """Leaves out Lightning's notes on hardware, ranks and checkpoints; its warnings and answers are heard."""

    NOTES = (
        *("GPU available", "TPU available", "HPU available", "IPU available", "💡 Tip", "Using ", "LOCAL_RANK"),
        *("Initializing distributed", "distributed_backend", "Restor", "Loaded model weights", "`Trainer.fit` stopped"),
        *(
            "`Trainer(",
            "`weights_only` was not set",
            "The following callbacks returned",
            "Running in `fast_dev_run`",
            "Trainer already configured",
            "-----",
            "All distributed",
            "\n",
        ),
    )

    LOGGERS = (
        *("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"),
        *("pytorch.trainer.connectors.checkpoint_connector", "pytorch.accelerators.cuda"),
    )

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not record.getMessage().startswith(self.NOTES)


_CHATTER = _Chatter()


def _trainer(node: dict[str, Any], results: Results, callbacks: list[Callback], **facts: Any) -> Trainer:
    hidden = node.get("enable_progress_bar") is False
    # what is null is as it is without; the bar is needed by callbacks, and Lightning would miss it
    node = {name: value for name, value in node.items() if value is not None and name != "enable_progress_bar"}
    for name in _Chatter.LOGGERS:
        logging.getLogger(f"lightning.{name}").addFilter(_CHATTER)
    # true of Lightning's own loops, not of data in memory and an order that is a function of the step
    for words in (
        "The '.*dataloader' does not have many workers",
        "You're resuming from a checkpoint that ended",
        "torch.distributed.nn.functional.all_gather is deprecated",
        "Grad strides do not match bucket view strides",  # of a 1x1 convolution: costs nothing here
    ):
        warnings.filterwarnings("ignore", words)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec", FutureWarning)
    try:
        trainer = make(
            node,
            "trainer",
            Trainer,
            use_distributed_sampler=False,
            enable_model_summary=False,
            default_root_dir=str(results.run.path),
            callbacks=callbacks,
            logger=[CSVMetrics(results), *results.loggers],
            **facts,
        )
    except (MisconfigurationException, RuntimeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    if hidden and trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.disable()
    if not torch.cuda.is_available():  # Lightning has the optimizer look for a driver in every step, for 49 µs
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    leave_out_unused(trainer.callbacks)  # type: ignore[attr-defined]
    meet_in_private(trainer)
    sum_in_one_order(trainer)
    return trainer
