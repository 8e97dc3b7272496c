"""Reverse variances on every schedule, against Gaussians conditioned by the textbook."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from noising.diffusion.levels import NoiseLevel
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import DenoisingError, FixedLarge, FixedSmall, LearnedRange, Optimal

STEPS = 40
STD = 0.6


class Error(NamedTuple):
    """E‖x − x̂‖²/D of the perfect denoiser of N(0, std²): s²σ²/(α²s² + σ²)."""

    std: float

    def __call__(self, level: NoiseLevel) -> Tensor:
        data, noise = (level.alpha * self.std) ** 2, level.sigma**2
        return self.std**2 * noise / (data + noise)


@pytest.mark.parametrize("step", [1, 2, 20, 40])
def test_optimal_is_the_conditional_variance_of_gaussian_data(schedule: Schedule, step: int) -> None:
    """x_s given x_t, both Gaussian: Var x_s − Cov²/Var x_t. To 1e-8."""
    transition = Chain.uniform(schedule, STEPS)[step]
    t, s = transition.later, transition.earlier
    own_s, own_t = ((v.alpha * STD) ** 2 + v.sigma**2 for v in (s, t))
    together = t.alpha / s.alpha * own_s
    found = Optimal(error=Error(STD)).log_variance(transition, None).exp()
    scale = float(own_s)  # the difference is taken of numbers of this size
    assert found.item() == pytest.approx(float(own_s - together**2 / own_t), rel=1e-8, abs=1e-12 * scale)


@pytest.mark.parametrize("step", [1, 2, 20, 40])
def test_optimal_adds_the_error_of_any_denoiser(schedule: Schedule, step: int) -> None:
    """c σ_s² + (α_s c)² error, written with c = 1 − snr_t/snr_s; to 1e-9."""
    transition = Chain.uniform(schedule, STEPS)[step]
    t, s = transition.later, transition.earlier
    c = 1 - (t.alpha * s.sigma / (t.sigma * s.alpha)) ** 2
    found = Optimal(error=lambda level: 0.03 * torch.ones_like(level.alpha)).log_variance(transition, None).exp()
    assert found.item() == pytest.approx(float(c * s.sigma**2 + (s.alpha * c) ** 2 * 0.03), rel=1e-9)


@pytest.mark.parametrize("step", [2, 20, 40])
def test_fixed_variances_are_the_textbooks(schedule: Schedule, step: int) -> None:
    """Large: what x_t has beside the scaled x_s. Small: 1/(1/σ_s² + ratio²/large), the product of the Gaussians."""
    transition = Chain.uniform(schedule, STEPS)[step]
    t, s = transition.later, transition.earlier
    ratio = t.alpha / s.alpha
    large = float(t.sigma**2 - (ratio * s.sigma) ** 2)
    small = 1 / (1 / float(s.sigma) ** 2 + float(ratio) ** 2 / large)
    assert FixedLarge().log_variance(transition, None).exp().item() == pytest.approx(large, rel=1e-8)
    assert FixedSmall().log_variance(transition, None).exp().item() == pytest.approx(small, rel=1e-8)
    raw = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    ends = LearnedRange().log_variance(transition, raw).exp().flatten().tolist()
    assert ends == pytest.approx([small, large], rel=1e-8)


def test_measured_error_is_kept_through_every_move() -> None:
    """A state of other knots replaces this one's; halving the module leaves the table in float64, bit by bit."""
    one, two = DenoisingError(), DenoisingError()
    one.set(torch.tensor([-6.0, 0.3, 7.1]), torch.tensor([0.25, 0.07, 1e-4]))
    two.set(torch.tensor([-1.0, 1.0]), torch.tensor([0.9, 0.8]))
    two.load_state_dict(one.half().to(torch.bfloat16).state_dict())
    for ours, theirs in ((two.log_snr, one.log_snr), (two.log_error, one.log_error)):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, theirs)
    assert two.log_error.exp().tolist() == pytest.approx([0.25, 0.07, 1e-4], rel=1e-7)
