"""An identity: a number known from theory, beside the measured one."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Identity(NamedTuple):
    """A number known from theory, as it was measured."""

    part: str
    """The config group that most likely causes a deviation."""
    name: str
    expected: float
    measured: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance; nan is not."""
        return abs(self.measured - self.expected) <= self.tolerance


def largest(deviation: Tensor) -> float:
    """The largest absolute value; nan if any is."""
    if not deviation.numel():
        return 0.0
    return math.nan if bool(deviation.isnan().any()) else float(deviation.abs().max())


def count(violated: Tensor) -> float:
    """Number of true elements."""
    return float(torch.count_nonzero(violated))
