"""One thing that must be true, and how far it is from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Identity", "count", "largest"]


class Identity(NamedTuple):
    """A number that theory gives and that was measured."""

    part: str
    """The group of the config that breaks it, most likely."""
    name: str
    expected: float
    measured: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the measured number is within the tolerance; nan is not."""
        return abs(self.measured - self.expected) <= self.tolerance


def largest(deviation: Tensor) -> float:
    """The largest absolute value; nan if any is."""
    if not deviation.numel():
        return 0.0
    return math.nan if bool(deviation.isnan().any()) else float(deviation.abs().max())


def count(violated: Tensor) -> float:
    """How many are true."""
    return float(torch.count_nonzero(violated))
