"""The chain's objectives: on average over the steps the bound itself; the hybrid's second term trains the variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.likelihood.decoders import (
    Decoder,
    DiscretizedGaussian,
    PlainGaussian,
    SoftmaxGaussian,
    TanhDiscretizedGaussian,
)
from noising.diffusion.likelihood.terms import variational_bound
from noising.diffusion.noise_labels import ScaledTime
from noising.diffusion.objectives import ContinuousBound, Hybrid, Objective, Regression, VariationalBound, WeightedBound
from noising.diffusion.parameterizations import CleanImage, Epsilon, Parameterization, Velocity
from noising.diffusion.schedules import Cosine, LinearBeta, Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, Learned, LearnedRange, ReverseVariance
from noising.diffusion.weightings import min_snr, uniform
from tests.diffusion.conftest import Crooked, final_classes, images, in_turn, normals

STEPS = 12
DECODER = DiscretizedGaussian(17)
DECODERS: list[Decoder] = [DECODER, TanhDiscretizedGaussian(17), SoftmaxGaussian(17), PlainGaussian()]
VARIANCES: list[ReverseVariance] = [FixedSmall(), FixedLarge(), LearnedRange(), Learned()]
GRID = torch.arange(1, STEPS + 1, dtype=torch.float64) / STEPS


def by_name(part: object) -> str:
    return type(part).__name__


class WithVariance(Crooked):
    """With a second output, in and out of [−1, 1]."""

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        level = noise_label.reshape(-1, 1, 1, 1).to(x)
        return torch.cat([super().forward(x, noise_label), 1.2 * torch.sin(2 * x + level / 300)], 1)


class Said(nn.Module):
    """A network that says what it is given, so that a loss has a gradient in it."""

    def __init__(self, said: Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.said


def made(schedule: Schedule, variance: ReverseVariance, kind: type[Parameterization] = Velocity) -> Denoiser:
    model = WithVariance() if variance.outputs > 1 else Crooked()
    return Denoiser(model, schedule, kind(), variance, ScaledTime())


def test_every_final_class_is_tested() -> None:
    assert final_classes(Objective) == {Regression, WeightedBound, ContinuousBound, VariationalBound, Hybrid}


def averages_to_the_bound(denoiser: Denoiser, decoder: Decoder) -> None:
    """The loss of one image at all steps at once, against the bound of that image term by term; to 1e-10."""
    x, noise = images(1), normals(STEPS, 1, 1, 3, 3)
    objective = VariationalBound(STEPS, decoder)
    loss = objective(denoiser, x.expand(STEPS, -1, -1, -1), GRID, noise[:, 0])["loss"]
    chain = Chain.uniform(denoiser.schedule, STEPS)
    bound = variational_bound(denoiser, chain, x, decoder, in_turn(noise)).bits_per_dim
    torch.testing.assert_close(loss[0] / STEPS, bound.decoder[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(loss[1:] / STEPS, bound.steps[0], rtol=1e-10, atol=0)
    assert float(loss.mean()) == pytest.approx(float(bound.total - bound.prior), rel=1e-10)


def test_average_over_the_steps_is_the_bound_on_every_schedule(schedule: Schedule) -> None:
    averages_to_the_bound(made(schedule, LearnedRange()), DECODER)


@pytest.mark.parametrize("decoder", DECODERS, ids=by_name)
@pytest.mark.parametrize("variance", VARIANCES, ids=by_name)
def test_average_over_the_steps_is_the_bound_with_every_part(variance: ReverseVariance, decoder: Decoder) -> None:
    averages_to_the_bound(made(Cosine(1000), variance), decoder)


@pytest.mark.parametrize("kind", [CleanImage, Velocity])
def test_weight_is_that_of_the_loss(schedule: Schedule, kind: type[Parameterization]) -> None:
    """With the posterior's own variance T L_t is the declared weight times the output's error; to 1e-6."""
    denoiser, objective = made(schedule, FixedSmall(), kind), VariationalBound(STEPS, DECODER)
    t = GRID[1:]
    x, noise = images(1).expand(STEPS - 1, -1, -1, -1), normals(STEPS - 1, 1, 3, 3)
    with torch.no_grad():
        level = schedule(t)
        regression = Regression(uniform)(denoiser, x, t, noise)["mse"]
        weight = objective.weight(schedule, level, denoiser.parameterization.gain(level)).flatten()
        loss = objective(denoiser, x, t, noise)["loss"]
    torch.testing.assert_close(weight * regression, loss, rtol=1e-6, atol=1e-12)
    with torch.no_grad():
        on_image = objective.weight(schedule, schedule(GRID[:2]), torch.ones(2)).tolist()
    assert on_image[0] == on_image[1]  # step 1 is a decoder's: pictured as step 2


def gradients(objective: Objective, term: str, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Of a term's sum with respect to the network's mean and variance outputs, at all steps."""
    x, noise, said = images(STEPS), normals(STEPS, 1, 3, 3), normals(STEPS, 2, 3, 3, seed=1).requires_grad_()
    denoiser = Denoiser(Said(said), schedule, Epsilon(), LearnedRange(), ScaledTime())
    terms = objective(denoiser, x, GRID, noise)
    (gradient,) = torch.autograd.grad(terms[term].sum(), said)
    return gradient[:, :1], gradient[:, 1:]


@pytest.mark.parametrize("schedule", [LinearBeta(1000), Cosine(1000)], ids=["linear", "cosine"])
def test_hybrids_bound_trains_the_variance_alone(schedule: Schedule) -> None:
    """The mean's gradient is exactly nothing, at step 1 too; the variance's is that of the whole bound, bit by bit."""
    hybrid, whole = Hybrid(uniform, STEPS, DECODER), VariationalBound(STEPS, DECODER)
    mean, variance = gradients(hybrid, "bound", schedule)
    of_the_bound = gradients(whole, "loss", schedule)
    assert torch.equal(mean, torch.zeros_like(mean))
    assert torch.equal(variance, of_the_bound[1])
    for gradient in (variance, of_the_bound[0]):
        assert bool((gradient.abs().amax((1, 2, 3)) > 0).all())


@pytest.mark.parametrize("weighting", [uniform, min_snr], ids=["uniform", "min_snr"])
@pytest.mark.parametrize("bound_weight", [0.001, 0.3])
def test_hybrid_is_the_regression_and_its_share_of_the_bound(bound_weight: float, weighting) -> None:  # type: ignore[no-untyped-def]
    """To 1e-12; and the mean's gradient is the regression's alone."""
    schedule = Cosine(1000)
    denoiser = made(schedule, LearnedRange(), Epsilon)
    x, noise = images(STEPS), normals(STEPS, 1, 3, 3)
    hybrid = Hybrid(weighting, STEPS, DECODER, bound_weight)
    terms = hybrid(denoiser, x, GRID, noise)
    plain = Regression(weighting)(denoiser, x, GRID, noise)
    bound = VariationalBound(STEPS, DECODER)(denoiser, x, GRID, noise)["loss"]
    torch.testing.assert_close(terms["loss"], plain["loss"] + bound_weight * bound, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["bound"], bound, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["mse"], plain["mse"], rtol=1e-12, atol=0)
    of_hybrid, of_plain = (gradients(o, "loss", schedule)[0] for o in (hybrid, Regression(weighting)))
    torch.testing.assert_close(of_hybrid, of_plain, rtol=1e-12, atol=1e-15)


def test_another_schedule_gets_its_own_chain() -> None:
    """An objective that was used with one schedule is not bent by it."""
    used, x, noise = VariationalBound(STEPS, DECODER), images(STEPS), normals(STEPS, 1, 3, 3)
    for schedule in (LinearBeta(1000), Cosine(1000), LinearBeta(1000)):
        denoiser = made(schedule, FixedLarge())
        new = VariationalBound(STEPS, DECODER)
        assert torch.equal(used(denoiser, x, GRID, noise)["loss"], new(denoiser, x, GRID, noise)["loss"])


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="bound_weight must be positive"):
        Hybrid(uniform, STEPS, DECODER, bound_weight=0)
