"""The Python door to a run: `noising.load(RUN)` gives the trained denoiser, its config and its data."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from noising.config.instantiate import check, make_function
from noising.config.moved import with_current_names
from noising.config.options import check_options
from noising.data.image_data import ImageData
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.guidance import Guided, Unconditional, unconditional
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.terms import ModelTerms
from noising.diffusion.transitions import Chain
from noising.errors import ConfigError, config_errors, one_line
from noising.experiment import Experiment
from noising.runs.folder import Run
from noising.runs.trust import require_trusted, with_variables_withheld
from noising.training.checkpoint_content import OF_A_MODEL, raw_weights, require_entries, require_weights
from noising.training.checkpoints import load_checkpoint


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint and what it was trained with; data and denoiser are built when first asked for."""

    path: Path
    """The checkpoint file."""
    config: DictConfig = field(repr=False)
    """Resolved, as the run was started with, but for variables of the environment that the file asks for."""
    step: int
    """Optimizer steps taken."""
    checkpoint: dict[str, Any] = field(repr=False)

    @cached_property
    def _experiment(self) -> Experiment:
        return Experiment(self.config, downloads=False)  # the file may say to where: it makes no folder

    @property
    def data(self) -> ImageData:
        """The data set the run was trained on."""
        return self._experiment.data

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoiser with the averaged weights, on the CPU, in evaluation mode."""
        denoiser = self._experiment.denoiser
        weights = raw_weights(self.checkpoint)  # for the buffers, of which there is no average
        average = self.checkpoint["ema"]
        with config_errors(f"checkpoint={self.path}"):
            require_weights(denoiser, average, weights, denoiser.state_dict())
            denoiser.load_state_dict(weights | average["weights"])
        return denoiser.eval()

    @property
    def classes(self) -> int:
        """Number of classes, 0 for an unconditional network."""
        return self._experiment.num_classes

    def guided(self, guidance: DictConfig | None) -> Denoiser:
        """The denoiser under the guidance of a `guidance` node; as it is without one."""
        if guidance is None:
            return self.denoiser
        with config_errors("guidance"):
            guide = make_function(guidance, "guidance")
            guided: Guided = guide(self.denoiser)
        weaker = guided.guide.model
        guides_itself = isinstance(weaker, Unconditional) and weaker.model is self.denoiser.model
        if guides_itself and not (self.classes and self.config.get("label_dropout")):
            raise ConfigError(
                "guidance=classifier_free needs a model that was trained with and without class labels: this one was "
                f"trained with {'each' if self.classes else 'no'} label; train with label_dropout=0.1"
            )
        if isinstance(weaker, Unconditional) and guides_itself:
            weaker.classes = self.classes
        classes = getattr(weaker, "classes", self.classes)
        if classes not in (0, self.classes):
            raise ConfigError(
                f"guidance.guide.checkpoint: that model has {classes} classes, but the model to guide has "
                f"{self.classes}: the guide must have the same number of classes, or none"
            )
        return guided

    def bound_terms(self, clip: float | None, device: torch.device | str = "cpu") -> ModelTerms:
        """The terms of the bound: averaged weights, and the chain and decoder of the training."""
        denoiser = self.denoiser.to(device) if self.classes else unconditional(self.denoiser.to(device))
        chain = Chain.uniform(denoiser.schedule, self.config.timesteps)
        return ModelTerms(denoiser, chain, self._experiment.recipe.decoder, clip)

    def image_set(self, split: str, device: torch.device | str = "cpu", size: int | None = None) -> ImageSet:
        """The first `size` images of a split with their classes, default all, keyed as in every evaluation of it."""
        size = size or len(getattr(self.data, split).pixels)
        return ImageSet(size, partial(self.data.batch, split, device=device), split)

    @property
    def source(self) -> dict[str, Any]:
        """The model's identity, for the cards of its numbers."""
        started = self.checkpoint.get("init_from")
        augmentation = self._experiment.augmentation
        return {
            **{"checkpoint": str(self.path), "sha256": self._digest, "step": self.step, "weights": self.weights},
            **({"init_from": started} if started else {}),
            **self.converted,
            **({} if augmentation is None else {"augmentation": augmentation.card}),
        }

    @property
    def converted(self) -> dict[str, Any]:
        """The entry of cards for weights that were converted from another project's file; empty for others."""
        card = self.checkpoint.get("converted")
        return {"converted": card} if card else {}

    @cached_property
    def _digest(self) -> str:
        return digest(self.path)

    @property
    def weights(self) -> dict[str, Any]:
        """Decay and number of updates of the averaged weights."""
        return {name: self.checkpoint["ema"][name] for name in ("decay", "updates")}

    @classmethod
    def load(cls, run: str | Path, trusted: bool = False) -> Self:
        """A trained run from its folder, its folder of checkpoints, or a checkpoint file.

        trusted: whether its config is the caller's own words, so that it may name what it will. Raises ConfigError if
        there is no such run.
        """
        path = checkpoint_file(run, "checkpoint")
        with config_errors(f"checkpoint={run}"):
            checkpoint = load_checkpoint(path)
        with config_errors(f"checkpoint={run}: {path}"):
            require_entries(checkpoint, OF_A_MODEL)
        config = with_current_names(checkpoint["config"])
        folder = path.absolute().parent
        if not trusted:
            require_trusted(config, f"checkpoint={run}", folder.parent if folder.name == "checkpoints" else path)
        return cls(path, _checked(config, f"checkpoint={run}"), int(checkpoint["global_step"]), checkpoint)


load = TrainedRun.load


def checkpoint_file(run: str | Path, option: str) -> Path:
    """The last checkpoint of a run's folder or a folder of checkpoints, or the file itself.

    Raises ConfigError, which names the option, if there is none.
    """
    if not isinstance(run, str | Path) or not str(run):
        given = "null" if run is None else run
        raise ConfigError(f"{option}={given}: expected a run's folder or a checkpoint file")
    path = Path(run)
    if path.is_dir():
        inside = path / "last.ckpt"  # of a folder of checkpoints
        path = inside if inside.is_file() else Run(path).last_checkpoint
    if not path.is_file():
        raise ConfigError(f"{option}={run}: no run's folder or checkpoint file there (there is no {path})")
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(config: dict[str, Any], source: str) -> DictConfig:
    """The config, if the denoiser and the data can be built of it, as far as names and types tell.

    Raises ConfigError for what is missing in it, or of the wrong type.
    """
    try:
        for name in _PARTS:
            if not isinstance(config.get(name), Mapping) or "_target_" not in config[name]:
                raise ConfigError(f"{name} is missing or has no _target_: no run stores such a config")
        for name in ("timesteps", "seed"):
            if name not in config:
                raise ConfigError(f"{name} is missing: no run stores such a config")
        check_options("train", config)
        withheld = with_variables_withheld(config)
        check({name: withheld[name] for name in _PARTS}, "")
        return DictConfig(withheld)
    except (ConfigError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{source}: its config: {one_line(error)}") from error


_PARTS = (
    *("data", "model", "schedule", "parameterization", "noise_label", "variance", "times", "objective", "weighting"),
    "decoder",
)
"""Groups of the config that the denoiser and the data are built of."""


def trained_denoiser(checkpoint: str) -> Denoiser:
    """The denoiser of a run or a checkpoint file, for `guidance.guide`; it ignores the class if trained without."""
    try:
        run = load(checkpoint)
        denoiser = run.denoiser if run.classes else unconditional(run.denoiser)
        denoiser.source = run.source  # type: ignore[assignment]
        return denoiser
    except ConfigError as error:
        raise ConfigError(f"guidance.guide.{error}") from error
