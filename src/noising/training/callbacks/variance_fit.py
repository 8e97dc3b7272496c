"""The callback that fits the optimal reverse variance, where the config has it, to the averaged weights."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from noising.data.image_data import ImageData
from noising.diffusion.drawing import in_evaluation
from noising.diffusion.variances import Optimal, fit
from noising.randomness import normal
from noising.training.ema import EMA
from noising.training.module import DiffusionModule

__all__ = ["VarianceFit"]


_SEED = 0


class VarianceFit(Callback):
    """Before each validation and at the end of training, on the same images and noise on every rank.

    What it fits is part of the denoiser's state, so of each checkpoint that is written after.
    """

    def __init__(self, data: ImageData, ema: EMA) -> None:
        self.data = data
        self.ema = ema

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit(pl_module)

    def _fit(self, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        variance = pl_module.denoiser.variance
        if not isinstance(variance, Optimal):
            return
        device = pl_module.device
        x = self.data.scale(self.data.train.pixels[: variance.images]).to(device)
        labels = self.data.train.labels
        classes = labels[: variance.images].to(device) if pl_module.classes and labels is not None else None
        noises = (normal(x.shape, _SEED, "variance", knot, device=device) for knot in range(variance.knots))
        evaluation = pl_module.test
        with self.ema.swapped(pl_module), in_evaluation(pl_module.denoiser):
            fit(pl_module.denoiser, x, noises, evaluation.timesteps, evaluation.estimator.clip, classes)
