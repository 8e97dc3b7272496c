"""Noise labels: the number that tells the network the noise level."""

from abc import ABC, abstractmethod

from torch import Tensor

from noising.diffusion.levels import NoiseLevel


class NoiseLabel(ABC):
    """A function from noise levels to the network's conditioning number."""

    @abstractmethod
    def __call__(self, level: NoiseLevel) -> Tensor:
        """The label, float64, of the level's shape."""


class ScaledTime(NoiseLabel):
    """A label that is linear in t: by default 1000 t, the range that sinusoidal embeddings are made for.

    Score SDE's is 999 t. Rectified flow's, whose time runs from the noise to the image, is 999 (1 − t).
    """

    def __init__(self, at_image: float = 0.0, at_noise: float = 1000.0) -> None:
        """at_image: the label at t = 0; at_noise: at t = 1."""
        if at_image == at_noise:
            raise ValueError(f"at_image and at_noise must differ, both are {at_image}")
        self.at_image, self.at_noise = at_image, at_noise

    def __call__(self, level: NoiseLevel) -> Tensor:
        return self.at_image + (self.at_noise - self.at_image) * level.t


class DiscreteStep(NoiseLabel):
    """(T t − 1) 1000/T: the step counted from 0, as in DDPM and improved DDPM."""

    def __init__(self, timesteps: int = 1000) -> None:
        self.timesteps = timesteps

    def __call__(self, level: NoiseLevel) -> Tensor:
        return (self.timesteps * level.t - 1) * (1000 / self.timesteps)


class LogSNR(NoiseLabel):
    """λ itself, for oracles; infinite at zero terminal SNR."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.log_snr


class ScaledLogSNR(NoiseLabel):
    """λ mapped linearly from [log_snr_max, log_snr_min] to [0, 1000]: independent of the schedule.

    With a learned schedule the λ of a time changes, so the network must be conditioned on λ and not on t. Kingma et
    al., "Variational Diffusion Models" (2021), appendix B.
    """

    def __init__(self, log_snr_max: float = 20.0, log_snr_min: float = -20.0, clamped: bool = True) -> None:
        """clamped: levels beyond the ends have the labels of the ends; in VDM they have labels beyond."""
        if not log_snr_max > log_snr_min:
            raise ValueError(f"log_snr_max must be above log_snr_min, got {log_snr_max} and {log_snr_min}")
        self.log_snr_max = log_snr_max
        self.log_snr_min = log_snr_min
        self.clamped = clamped

    def __call__(self, level: NoiseLevel) -> Tensor:
        within = level.log_snr.clamp(self.log_snr_min, self.log_snr_max) if self.clamped else level.log_snr
        return 1000 * (self.log_snr_max - within) / (self.log_snr_max - self.log_snr_min)


class QuarterLogSigma(NoiseLabel):
    """¼ log(σ/α) = −λ/8, EDM's c_noise.

    Karras et al. (2022), table 1. https://arxiv.org/abs/2206.00364
    """

    def __call__(self, level: NoiseLevel) -> Tensor:
        return -level.log_snr / 8
