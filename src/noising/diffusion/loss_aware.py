"""Training times that follow the loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noising.diffusion.schedules import Schedule
from noising.diffusion.times import Draw, TimeSampler

__all__ = ["LossAware"]


class LossAware(TimeSampler):
    """Steps of the chain in proportion to √E[L_t²], from the last losses seen at each; uniform until all were seen.

    The importance weights 1/(T p_t) keep averages those over uniform steps. The losses are read on the host: each
    training step waits for its own. Nichol & Dhariwal, "Improved DDPM" (2021), section 3.3.
    https://arxiv.org/abs/2102.09672
    """

    learns = True

    def __init__(self, timesteps: int, history: int = 10, uniform_share: float = 0.001) -> None:
        """history: losses kept of each step; uniform_share: of the draws, so that no step is forgotten."""
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}")
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must be in (0, 1], got {uniform_share}")
        self.timesteps = timesteps
        self.uniform_share = uniform_share
        self._losses = np.zeros((timesteps, history))  # of each step the newest, in a ring
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

    def sample(self, draw: Draw, schedule: Schedule) -> tuple[Tensor, Tensor]:
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
        if theirs != ours:
            raise ValueError(f"the checkpoint's loss history has shape {theirs}, these times have {ours}")
        self._losses, self._seen = state["losses"].numpy().copy(), state["seen"].numpy().copy()
