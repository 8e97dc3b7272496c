"""The regression is the simplified loss, a pure function of (x, t, ε), least at the optimum."""

from __future__ import annotations

import math

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
from noising.diffusion.likelihood.terms import ModelTerms, variational_bound
from noising.diffusion.noise_labels import QuarterLogSigma, ScaledTime
from noising.diffusion.objectives import (
    ContinuousBound,
    Hybrid,
    Objective,
    Regression,
    UncertaintyWeighted,
    VariationalBound,
    WeightedBound,
)
from noising.diffusion.parameterizations import CleanImage, Epsilon, Karras, Parameterization, Velocity
from noising.diffusion.schedules import (
    Cosine,
    LearnedLine,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    RectifiedFlow,
    Schedule,
)
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, Learned, LearnedRange, ReverseVariance
from noising.diffusion.weightings import min_snr, snr, uniform
from tests.diffusion.helpers import (
    Crooked,
    ToyOfEDM2,
    denoiser_of,
    final_classes,
    gaussian_denoiser,
    images,
    in_turn,
    normals,
    randomized,
)
from tests.interchange.helpers import fixture

T = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)


def test_is_the_mean_squared_error_of_the_noise(preserving: Schedule) -> None:
    """Ho et al., equation 14, written out."""
    x, noise = images(5), normals(5, 1, 3, 3)
    alpha_bar = torch.sigmoid(preserving.log_snr(T)).reshape(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
    predicted = Crooked()(x_t, preserving.log_snr(T))
    terms = Regression(uniform)(denoiser_of(Crooked(), preserving), x, T, noise)
    torch.testing.assert_close(terms["loss"], ((noise - predicted) ** 2).mean((1, 2, 3)), rtol=1e-10, atol=0)
    assert torch.equal(terms["loss"], terms["mse"])


def test_weighted_loss_is_the_weight_on_the_images_error(schedule: Schedule) -> None:
    x, noise = images(5), normals(5, 1, 3, 3)
    level = schedule(T)
    for kind in (Epsilon, CleanImage, Velocity):
        denoiser = denoiser_of(Crooked(), schedule, kind())
        error = ((denoiser.at(level.perturb(x, noise), level).x - x) ** 2).mean((1, 2, 3))
        ratio = level.log_snr.exp().flatten()
        for weighting, weight in ((snr, ratio), (min_snr, ratio.clamp(max=5))):
            loss = Regression(weighting)(denoiser, x, T, noise)["loss"]
            torch.testing.assert_close(loss, weight * error, rtol=1e-6, atol=1e-12)


def test_optimum_has_no_gradient_and_others_do(preserving: Schedule) -> None:
    """Scaling the optimal prediction of Gaussian data by (1 + δ): the average loss is flat at δ = 0, and rises."""
    x, noise = 0.5 * normals(200_000, 1, 1, 1), normals(200_000, 1, 1, 1, seed=1)
    t = torch.rand(200_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.9 + 0.05
    for kind in (Epsilon, CleanImage, Velocity):
        denoiser = gaussian_denoiser(0.5, preserving, kind())
        delta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        inner = denoiser.model.forward
        denoiser.model.forward = lambda *a, inner=inner, delta=delta, **k: (1 + delta) * inner(*a, **k)  # type: ignore[method-assign]
        loss = Regression(uniform)(denoiser, x, t, noise)["loss"]
        (slope,) = torch.autograd.grad(loss.mean(), delta)
        assert abs(slope.item()) < 0.02 * loss.mean().item()
        with torch.no_grad():
            delta += 0.3
        assert Regression(uniform)(denoiser, x, t, noise)["loss"].mean() > loss.mean()


def test_gradient_is_that_of_the_loss_in_float64(schedule: Schedule) -> None:
    weight = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    class Scaled(Crooked):
        def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            return weight * super().forward(x, noise_label, class_label)

    x, noise = images(5), normals(5, 1, 3, 3)

    def loss() -> torch.Tensor:
        return Regression(uniform)(denoiser_of(Scaled(), schedule), x, T, noise)["loss"].mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        weight += 1e-6
        above = loss()
        weight -= 2e-6
        below = loss()
    torch.testing.assert_close(gradient[0], (above - below) / 2e-6, rtol=1e-7, atol=0)


# The bounds of a chain as objectives


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
    bounds = {WeightedBound, ContinuousBound, VariationalBound, Hybrid}
    assert final_classes(Objective) == {Regression, UncertaintyWeighted} | bounds


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
    """Gradients of a term's sum with respect to the network's mean and variance outputs, at all steps."""
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


@pytest.mark.parametrize(
    "objective",
    [Regression(min_snr), WeightedBound(uniform), ContinuousBound(), VariationalBound(STEPS, DECODER)],
    ids=lambda objective: type(objective).__name__,
)
def test_an_image_alone_has_the_loss_that_it_has_in_a_batch(objective: Objective) -> None:
    denoiser, x, noise = denoiser_of(Crooked(), LinearLogSNR()), images(5), normals(5, 1, 3, 3)
    whole = objective(denoiser, x, T, noise)["loss"]
    alone = [objective(denoiser, x[i : i + 1], T[i : i + 1], noise[i : i + 1])["loss"] for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-12, atol=0)


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


# The bound at infinitely many steps


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
        terms = ModelTerms(denoiser, chain, PlainGaussian()).at(next(many), every, next(many)).nats
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


def test_a_line_whose_ends_are_learned_follows_the_whole_bound() -> None:
    """Its loss and its gradient are those of prior, reconstruction and diffusion, each written out."""
    x, noise = images(5), normals(5, 1, 3, 3)
    schedule = LearnedLine(4.0, -3.0, image_scale=255 / 256)
    denoiser, decoder = denoiser_of(Crooked(), schedule), SoftmaxGaussian(8)
    found = ContinuousBound(decoder)(denoiser, x, T, noise)["loss"]
    found_gradients = torch.autograd.grad(found.mean(), list(schedule.parameters()))

    level, rate = schedule(T), schedule.log_snr_rate(T)
    error = (denoiser.at(level.perturb(x, noise), level).output - noise).square().mean((1, 2, 3))
    diffusion = -0.5 * rate * error
    start, end = (schedule(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    grey = torch.linspace(-1, 1, 8, dtype=torch.float64)
    z_0 = start.alpha * x + start.sigma * noise
    logits = -0.5 * ((z_0[..., None] - start.alpha * grey) / start.sigma) ** 2
    own = -0.5 * ((z_0 - start.alpha * x) / start.sigma) ** 2
    reconstruction = -(own - logits.logsumexp(-1)).mean((1, 2, 3))
    prior = 0.5 * ((end.alpha * x) ** 2 + end.sigma**2 - 1 - 2 * end.sigma.log()).mean((1, 2, 3))
    expected = (diffusion + reconstruction + prior) / math.log(2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    gradients = torch.autograd.grad(expected.mean(), list(schedule.parameters()))
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-6, atol=0)
    assert all(float(gradient.abs()) > 1e-3 for gradient in gradients)


def test_a_line_whose_ends_are_learned_needs_a_decoder_without_a_network() -> None:
    denoiser = denoiser_of(Crooked(), LearnedLine())
    for decoder in (None, DiscretizedGaussian(8)):
        with pytest.raises(ValueError, match="a schedule that learns its ends needs a decoder without a network"):
            ContinuousBound(decoder)(denoiser, images(2), T[:2], normals(2, 1, 3, 3))


def test_no_signal_at_the_end_is_no_nan() -> None:
    """At t = 1 of a straight path the rate is infinite and its weight nothing."""
    t, x, noise = torch.tensor([0.5, 1.0], dtype=torch.float64), images(2), normals(2, 1, 3, 3)
    denoiser = denoiser_of(torch.nn.Identity(), RectifiedFlow(), Velocity())
    denoiser.model.forward = lambda x, noise_label, class_label=None: 0 * x  # type: ignore[assignment]
    loss = ContinuousBound()(denoiser, x, t, noise)["loss"]
    assert float(loss[0]) > 0
    assert 0 <= float(loss[1]) < 1e-9


def test_the_uncertainty_weighted_loss_is_that_of_edm2s_code() -> None:
    given = fixture("scalars/edm2_phema_lr_loss_sampler")
    x, noise = given.inputs["loss/images"].double(), given.inputs["loss/noise"].double()
    log_sigma = 1.6 * given.inputs["loss/level_draw"].double() - 0.8
    schedule, network = LogLinearSigma(), ToyOfEDM2()
    denoiser = Denoiser(network, schedule, Karras(), FixedSmall(), QuarterLogSigma())
    t = schedule.time(-2 * log_sigma)
    terms = UncertaintyWeighted(uniform)(denoiser, x, t, noise)
    expected = given.outputs["loss/loss"].double().mean((1, 2, 3))
    torch.testing.assert_close(terms["loss"], expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(terms["log_variance"], 0.3 * log_sigma + 0.1)
    assert len(network.asked) == 1
    plain = Regression(uniform)(denoiser, x, t, noise)
    assert torch.equal(terms["mse"], plain["mse"])


def test_the_uncertainty_is_least_where_it_is_the_logarithm_of_the_error() -> None:
    """The derivative in u is 1 − w err²/exp(u); and the network's gradient is that of the error over exp(u)."""

    class Told(Crooked):
        def __init__(self, u: Tensor) -> None:
            super().__init__()
            self.u = nn.Parameter(u)

        def log_variance(self, noise_label: Tensor) -> Tensor:
            return self.u

    x, noise, schedule = images(5), normals(5, 1, 3, 3), Cosine()
    error = Regression(uniform)(denoiser_of(Crooked(), schedule), x, T, noise)["loss"].detach()
    for shift in (-0.5, 0.0, 0.5):
        network = Told(error.log() + shift)
        UncertaintyWeighted(uniform)(denoiser_of(network, schedule), x, T, noise)["loss"].sum().backward()
        torch.testing.assert_close(network.u.grad, torch.full_like(error, 1 - math.exp(-shift)))


def test_a_network_without_uncertainty_is_refused() -> None:
    with pytest.raises(ValueError, match="UncertaintyWeighted needs a network with log_variance, not Crooked"):
        UncertaintyWeighted(uniform)(denoiser_of(Crooked(), Cosine()), images(5), T, normals(5, 1, 3, 3))
