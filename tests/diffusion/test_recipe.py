"""Parts of a user's own that cannot be worked with are one line, not a traceback from within."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.noise_labels import ScaledTime
from noising.diffusion.objectives import Regression
from noising.diffusion.parameterizations import Epsilon, Parameterization
from noising.diffusion.recipe import Recipe, conflicts
from noising.diffusion.schedules import LinearLogSNR, Schedule
from noising.diffusion.times import Uniform
from noising.diffusion.variances import FixedSmall
from noising.diffusion.weightings import uniform


def recipe(**parts: object) -> Recipe:
    sound = Recipe(
        LinearLogSNR(), Epsilon(), ScaledTime(), FixedSmall(), Uniform(), Regression(uniform), DiscretizedGaussian()
    )
    return sound._replace(**parts)


class Mean(Schedule):
    def log_snr(self, t: Tensor) -> Tensor:
        return (10 - 20 * t).mean()


class Single(Schedule):
    def log_snr(self, t: Tensor) -> Tensor:
        return (10 - 20 * t).float()


class Numpy(Schedule):
    def log_snr(self, t: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(t.numpy(), [0, 1], [10, -10]))


class Half(Parameterization):
    """(x + ε)/√2, which is x_t itself at λ = 0."""

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        half = torch.full_like(level.alpha, 0.5**0.5)
        return half, half


class Everywhere(Parameterization):
    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return level.alpha, level.sigma


def one_argument(level: NoiseLevel) -> Tensor:
    return torch.ones_like(level.alpha)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"schedule": Mean()}, r"schedule: for t of shape \(997,\) Mean returns λ of shape \(\) in float64"),
        ({"schedule": Single()}, r"schedule: .* Single returns λ of shape \(997,\) in float32: compute it from t"),
        ({"schedule": Numpy()}, r"schedule: λ\(t\) of Numpy cannot be computed or differentiated: .*torch"),
        ({"parameterization": Half()}, r"parameterization: near λ = -?\d\.\d Half mixes x and ε as x_t does"),
        ({"parameterization": Everywhere()}, r"parameterization: near λ = 1\d\.\d Everywhere mixes"),
        ({"objective": Regression(one_argument)}, r"weighting: the call with \(level, gain\) failed: one_arg"),  # type: ignore[arg-type]
    ],
)
def test_it_is_named_with_the_way_out(parts: dict[str, object], message: str) -> None:
    import re

    (found,) = conflicts(recipe(**parts))
    assert re.match(message, found), found


def test_sound_parts_have_no_conflict() -> None:
    assert list(conflicts(recipe())) == []
