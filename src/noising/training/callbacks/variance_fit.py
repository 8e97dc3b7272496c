"""The callback that fits the optimal reverse variance, if the config has it, to the averaged weights."""

from lightning.pytorch import Callback, LightningModule, Trainer

from noising.data.image_data import ImageData
from noising.diffusion.drawing import in_evaluation
from noising.diffusion.variances import Optimal
from noising.randomness import Streams
from noising.training.ema import EMA
from noising.training.module import DiffusionModule

_SEED = 0


class VarianceFit(Callback):
    """Fits before each validation and at the end of training, on the same images and noise on every rank.

    The fitted variance is part of the denoiser's state, and so of each later checkpoint.
    """

    def __init__(self, data: ImageData, ema: EMA) -> None:
        self.data, self.ema = data, ema

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        variance = pl_module.denoiser.variance
        if not isinstance(variance, Optimal):
            return
        x, class_label = self.data.batch("train", slice(variance.images), pl_module.device)
        streams = Streams(_SEED, "variance", range(len(x)), x.device)
        noises = (streams.normal(x.shape[1:]) for _ in range(variance.knots))
        evaluation = pl_module.test
        with self.ema.swapped(pl_module.denoiser), in_evaluation(pl_module.denoiser):
            class_label = class_label if pl_module.classes else None
            pl_module.denoiser.fit_variance(x, noises, evaluation.timesteps, evaluation.estimator.clip, class_label)

    on_train_end = on_validation_start
