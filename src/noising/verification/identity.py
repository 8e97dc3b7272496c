"""An identity: a number known from theory, beside the measured one."""

from typing import NamedTuple

import torch
from torch import Tensor


class Identity(NamedTuple):
    """A number known from theory, as it was measured; part: the config group that most likely causes a deviation."""

    part: str
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
    return float(deviation.abs().max()) if deviation.numel() else 0.0


def count(violated: Tensor) -> float:
    """Number of true elements."""
    return float(torch.count_nonzero(violated))
