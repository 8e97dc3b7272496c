"""What the network is told of the noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from noising.diffusion.schedules import NoiseLevel

__all__ = ["DiscreteStep", "LogSNR", "NoiseLabel", "ScaledTime"]


class NoiseLabel(ABC):
    """A number per image that names its level to the network."""

    @abstractmethod
    def __call__(self, level: NoiseLevel) -> Tensor:
        """The label, float64, of the level's shape."""


class ScaledTime(NoiseLabel):
    """1000 t: the range sinusoidal embeddings are made for, whatever the number of steps."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return 1000 * level.t


class DiscreteStep(NoiseLabel):
    """(T t − 1) 1000/T: the step counted from 0, as DDPM's and improved DDPM's networks are told it."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def __call__(self, level: NoiseLevel) -> Tensor:
        return (self.timesteps * level.t - 1) * (1000 / self.timesteps)


class LogSNR(NoiseLabel):
    """λ itself: what an oracle, or a network for any schedule, wants to know."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.log_snr
