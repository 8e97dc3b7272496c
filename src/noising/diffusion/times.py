"""Training times: distributions of t in (0, 1], drawn for a batch, with importance weights where they need some.

The times of one optimizer step are drawn for its whole global batch from a generator shared by all ranks and
micro-batches, each of which takes its own slice. So strata span the whole batch, and t does not depend on the number of
devices.

A sampler either has the density p(t) = 1, by its draws or by their weights, so that averages are over uniform t; or
another one that reweights the noise levels, as part of the objective (`LogNormal`, `LogitNormal`).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noising.diffusion.schedules import Schedule
from noising.errors import require

SMALLEST = 1e-9  # the earliest time that is drawn: at t = 0 there is no noise to predict


class BatchSlot(NamedTuple):
    """The place of a micro-batch, `size` images from `start`, in the `total` of its optimizer step's global batch.

    generator: that of the step, equal on every rank.
    """

    generator: np.random.Generator
    start: int
    size: int
    total: int

    @property
    def positions(self) -> range:
        """The positions of the micro-batch's images in the global batch."""
        return range(self.start, self.start + self.size)

    def own(self, values: NDArray[Any]) -> Tensor:
        """The micro-batch's slice (size,) of values (total,)."""
        return torch.from_numpy(values[self.start : self.start + self.size])


class TimeSampler(ABC):
    """A distribution of training times."""

    learns: bool = False  # whether it needs `observe` to be called with the losses of all ranks
    earliest: float = SMALLEST  # no time before it is drawn, up to a rounding

    @abstractmethod
    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """(t in (0, 1], importance weight), each (draw.size,) float64 on the host."""

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The density of the draws times their weights, over which weighted averages are taken: of t's shape."""
        return torch.ones_like(t)

    def observe(self, t: Tensor, loss: Tensor) -> None:  # noqa: B027
        """Adapt to the unweighted losses (B,) at times t (B,); does nothing by default."""

    def state_dict(self) -> dict[str, Tensor]:
        """The adapted state, for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore the adapted state."""


class Uniform(TimeSampler):
    """t uniform in (0, 1], independent from image to image."""

    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        t = draw.own(1 - draw.generator.random(draw.total))
        return t, torch.ones_like(t)


class Grid(TimeSampler):
    """t = i/T with i uniform in 1..T: training on the discrete chain, as DDPM does. Ho et al. (2020), algorithm 1."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps
        self.earliest = 1 / timesteps

    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        t = draw.own(draw.generator.integers(1, self.timesteps + 1, draw.total) / self.timesteps)
        return t, torch.ones_like(t)


class LowDiscrepancy(TimeSampler):
    """One t in each of the batch's equal strata, shuffled: uniform, with far less variance from batch to batch.

    Kingma et al., "Variational Diffusion Models" (2021), appendix I.1. https://arxiv.org/abs/2107.00630
    """

    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        strata = draw.generator.permutation(draw.total)
        t = draw.own((strata + 1 - draw.generator.random()) / draw.total)
        return t, torch.ones_like(t)


class LogNormal(TimeSampler):
    """log(σ/α) ~ N(mean, std²), truncated at the schedule's ends: most times at medium levels of any schedule.

    Losses are averaged over these times without weights. Karras et al., "Elucidating the Design Space of
    Diffusion-Based Generative Models" (2022), table 1. https://arxiv.org/abs/2206.00364
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        self._normal = _Normal(mean, std)

    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        low, high = self._ends(schedule)
        u = draw.own(1 - draw.generator.random(draw.total))
        t = schedule.time(-2 * self._normal.quantile(low + (high - low) * u)).clamp(min=SMALLEST)
        return t, torch.ones_like(t)

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        low, high = self._ends(schedule)
        log_snr = schedule.log_snr(t)
        density = self._normal.density(-log_snr / 2) * schedule.log_snr_rate(t).abs() / (2 * (high - low))
        return torch.where(log_snr.isinf(), 0, density)

    def _ends(self, schedule: Schedule) -> Tensor:
        """The untruncated distribution function of log(σ/α) at the schedule's two ends, (2,)."""
        ends = schedule.log_snr(torch.tensor([SMALLEST, 1.0], dtype=torch.float64)).detach().cpu()
        return self._normal.cumulative(-ends / 2)


class LogitNormal(TimeSampler):
    """log t/(1 − t) ~ N(mean, std²): fewer times near both ends. Losses are averaged over these times without weights.

    Esser et al., "Scaling Rectified Flow Transformers" (2024), section 3.1. https://arxiv.org/abs/2403.03206
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self._normal = _Normal(mean, std)

    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        t = torch.sigmoid(self._normal.quantile(draw.own(draw.generator.random(draw.total)))).clamp(min=SMALLEST)
        return t, torch.ones_like(t)

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        density = self._normal.density(torch.logit(t)) / (t * (1 - t))
        return torch.where((t > 0) & (t < 1), density, 0)


class LossAware(TimeSampler):
    """Steps of the chain with p_t ∝ √E[L_t²], from the latest losses of each; uniform until every history is full.

    The importance weights 1/(T p_t) leave averages those over uniform steps. The losses are read on the host, so each
    training step waits for its own. Nichol & Dhariwal, "Improved DDPM" (2021), section 3.3.
    https://arxiv.org/abs/2102.09672
    """

    learns = True

    def __init__(self, timesteps: int, history: int = 10, uniform_share: float = 0.001) -> None:
        """history: latest losses stored for each step; uniform_share: share of the draws that stays uniform."""
        require(history >= 1, f"history must be at least 1, got {history}")
        require(0 < uniform_share <= 1, f"uniform_share must be in (0, 1], got {uniform_share}")
        self.timesteps = timesteps
        self.earliest = 1 / timesteps
        self.uniform_share = uniform_share
        self._losses = np.zeros((timesteps, history))  # a ring buffer for each step
        self._seen = np.zeros(timesteps, dtype=np.int64)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """p_t of the steps 1..T, (T,)."""
        uniform = np.full(self.timesteps, 1 / self.timesteps)
        if self._seen.min() < self._losses.shape[1]:
            return uniform
        size: NDArray[np.float64] = np.sqrt((self._losses**2).mean(1))
        skewed: NDArray[np.float64] = (1 - self.uniform_share) * size / size.sum() + self.uniform_share * uniform
        return skewed

    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        p = self.probabilities
        steps = draw.generator.choice(self.timesteps, draw.total, p=p)
        return draw.own((steps + 1) / self.timesteps), draw.own(1 / (self.timesteps * p[steps]))

    def observe(self, t: Tensor, loss: Tensor) -> None:
        steps = (t.double().cpu() * self.timesteps).round().long().numpy() - 1
        for step, value in zip(steps, loss.double().cpu().numpy(), strict=True):
            self._losses[step, self._seen[step] % self._losses.shape[1]] = value
            self._seen[step] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": torch.from_numpy(self._losses.copy()), "seen": torch.from_numpy(self._seen.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError for a history of another shape."""
        theirs, ours = tuple(state["losses"].shape), self._losses.shape
        require(theirs == ours, f"the checkpoint's loss history has shape {theirs}, but these times have {ours}")
        self._losses, self._seen = state["losses"].numpy().copy(), state["seen"].numpy().copy()


@dataclass(frozen=True)
class _Normal:
    """The normal distribution, in float64."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        require(self.std > 0, f"std must be positive, got {self.std}")

    def density(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.std
        return torch.exp(-0.5 * z * z) / (self.std * math.sqrt(2 * math.pi))

    def cumulative(self, x: Tensor) -> Tensor:
        probability: Tensor = torch.special.ndtr((x - self.mean) / self.std)
        return probability

    def quantile(self, p: Tensor) -> Tensor:
        quantile: Tensor = self.mean + self.std * torch.special.ndtri(p)
        return quantile
