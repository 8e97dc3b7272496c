"""The bound at infinitely many steps: the limit of the chain's, blind to the schedule's shape, and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noising.diffusion.likelihood.terms import posterior_term
from noising.diffusion.objectives import ContinuousBound, WeightedBound
from noising.diffusion.parameterizations import Epsilon, Velocity
from noising.diffusion.schedules import LinearLogSNR, RectifiedFlow, Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.weightings import snr
from tests.diffusion.conftest import Crooked, denoiser_of, images, normals
from tests.diffusion.test_curves import randomized


def average(schedule: Schedule, points: int = 2000) -> float:
    """The loss of one image and noise over uniform t, by the midpoint rule."""
    t = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    x, noise = (v.expand(points, -1, -1, -1) for v in (images(1), normals(1, 1, 3, 3)))
    with torch.no_grad():
        return float(ContinuousBound()(denoiser_of(Crooked(), schedule), x, t, noise)["loss"].mean())


@pytest.mark.parametrize("seed", range(3))
def test_does_not_depend_on_what_lies_between_the_ends(seed: int) -> None:
    assert average(randomized(seed), 8000) == pytest.approx(average(LinearLogSNR(9, -7)), rel=1e-3)


def test_is_the_limit_of_the_posterior_terms_at_rate_one_over_t() -> None:
    schedule, off = LinearLogSNR(6, -6), []
    limit = average(schedule)
    x, noise = images(1), normals(1, 1, 3, 3)
    denoiser = denoiser_of(Crooked(), schedule)
    for steps in (100, 200, 400):
        chain = Chain(schedule, torch.linspace(0, 1, steps + 1, dtype=torch.float64).clamp(min=1e-12))
        every = torch.arange(2, steps + 2)
        many = (v.expand(steps, -1, -1, -1) for v in (x, noise))
        terms = posterior_term(denoiser, chain, next(many), every, next(many))
        off.append(float(terms.sum()) / (9 * math.log(2)) - limit)
    assert off[0] / off[1] == pytest.approx(2, rel=0.05)
    assert off[1] / off[2] == pytest.approx(2, rel=0.05)


def test_weighted_by_the_snr_it_is_the_weighted_bound_in_nats() -> None:
    t, x, noise = torch.tensor([0.2, 0.7], dtype=torch.float64), images(2), normals(2, 1, 3, 3)
    denoiser = denoiser_of(Crooked(), LinearLogSNR(), Velocity())
    bits, nats = (objective(denoiser, x, t, noise)["loss"] for objective in (ContinuousBound(), WeightedBound(snr)))
    torch.testing.assert_close(bits * math.log(2), nats, rtol=1e-12, atol=0)


def test_learned_schedule_follows_the_square_and_the_network_the_loss() -> None:
    """One backward pass gives both: each is compared with its own loss, written without hooks."""
    x, noise, t = images(5), normals(5, 1, 3, 3), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)

    class Scaled(Crooked):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

        def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
            return self.scale * super().forward(x, noise_label)

    schedule, model = randomized(), Scaled()
    denoiser = denoiser_of(model, schedule)
    ContinuousBound()(denoiser, x, t, noise)["loss"].mean().backward()
    found = {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}

    level, rate = schedule(t), schedule.log_snr_rate(t)
    error = (denoiser.at(level.perturb(x, noise), level).output - noise).square().mean((1, 2, 3))
    loss = -0.5 / math.log(2) * rate * error
    parameters = dict(denoiser.named_parameters())
    of_square = torch.autograd.grad((loss**2).mean(), list(schedule.parameters()), retain_graph=True)
    (of_loss,) = torch.autograd.grad(loss.mean(), [model.scale])
    torch.testing.assert_close(found["model.scale"], of_loss)
    for parameter, expected in zip(schedule.parameters(), of_square, strict=True):
        (name,) = [name for name, other in parameters.items() if other is parameter]
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-9)


def test_training_the_shape_steadies_the_estimate() -> None:
    """Gradient steps on the shape alone lower the variance over t, and leave the mean where it is."""
    schedule = randomized()
    denoiser = denoiser_of(Crooked(), schedule, Epsilon())
    t = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    x, noise = (v.expand(512, -1, -1, -1) for v in (images(1), normals(1, 1, 3, 3)))  # all variance is over t
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ContinuousBound()(denoiser, x, t, noise)["loss"]
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1].std() < 0.7 * losses[0].std()
    assert float(losses[-1].mean()) == pytest.approx(float(losses[0].mean()), rel=0.02)


def test_no_signal_at_the_end_is_no_nan() -> None:
    """At t = 1 of a straight path the rate is infinite and its weight nothing."""
    t, x, noise = torch.tensor([0.5, 1.0], dtype=torch.float64), images(2), normals(2, 1, 3, 3)
    denoiser = denoiser_of(torch.nn.Identity(), RectifiedFlow(), Velocity())
    denoiser.model.forward = lambda x, noise_label, class_label=None: 0 * x  # type: ignore[assignment]
    loss = ContinuousBound()(denoiser, x, t, noise)["loss"]
    assert float(loss[0]) > 0
    assert 0 <= float(loss[1]) < 1e-9
