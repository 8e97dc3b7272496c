"""Guidance: it lies on the line through two denoisers, draws classes apart, and costs what it says."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.grids import karras, uniform
from noising.diffusion.guidance import Guided, autoguidance, classifier_free, unconditional
from noising.diffusion.noise_labels import QuarterLogSigma
from noising.diffusion.parameterizations import CleanImage, Epsilon, Karras, Velocity
from noising.diffusion.samplers import DDIM, DPMPP2M, Ancestral, Heun
from noising.diffusion.schedules import Cosine, LinearBeta, LogLinearSigma, Schedule
from noising.diffusion.variances import FixedSmall, LearnedRange
from tests.diffusion.helpers import PARAMETERIZATIONS, Classed, Crooked, ToyOfEDM2, denoiser_of, in_turn, normals
from tests.interchange.helpers import fixture


class TwoClasses(nn.Module):
    """The perfect x̂ for pixels N(m, s²), m = −½ for class 0 and ½ for class 1; without a class, for their mixture."""

    std = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor | None] = []

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        self.asked.append(class_label)
        snr = noise_label.exp().reshape(-1, 1, 1, 1)
        alpha, variance = (snr / (1 + snr)).sqrt(), 1 / (1 + snr)
        total = alpha**2 * self.std**2 + variance

        def clean(mean: Tensor | float) -> Tensor:
            return mean + alpha * self.std**2 / total * (x - alpha * mean)

        if class_label is not None:
            return clean(class_label.reshape(-1, 1, 1, 1).to(x) - 0.5)
        weight = torch.sigmoid(alpha * x / total)  # of class 1, by Bayes' rule
        return weight * clean(0.5) + (1 - weight) * clean(-0.5)


def two_classes(schedule: Schedule) -> Denoiser:
    return denoiser_of(TwoClasses(), schedule, CleanImage())


LABEL = torch.tensor([0, 1, 1])
X_T = normals(3, 1, 3, 3)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_the_prediction_is_the_line_through_both(parameterization: type) -> None:
    strong, weak = (denoiser_of(model, Cosine(100), parameterization()) for model in (Classed(), Crooked()))
    guided = autoguidance(strong, weak, scale=2.5)
    for t in (torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)):
        level = guided.schedule(t)
        found = guided.at(X_T, level, class_label=LABEL)
        a, b = strong.at(X_T, level, class_label=LABEL), weak.at(X_T, level)
        torch.testing.assert_close(found.x, 2.5 * a.x - 1.5 * b.x, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.noise, 2.5 * a.noise - 1.5 * b.noise, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.output, 2.5 * a.output - 1.5 * b.output, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(level.perturb(found.x, found.noise), X_T, rtol=1e-10, atol=1e-10)


def test_a_guide_may_predict_something_else() -> None:
    strong, weak = denoiser_of(Classed(), Cosine(100), Velocity()), denoiser_of(Crooked(), Cosine(100), Karras())
    guided, level = autoguidance(strong, weak, scale=3.0), Cosine(100)(torch.tensor(0.6, dtype=torch.float64))
    found = guided.at(X_T, level, class_label=LABEL)
    expected = 3 * strong.at(X_T, level, class_label=LABEL).x - 2 * weak.at(X_T, level).x
    torch.testing.assert_close(found.x, expected)
    solved = strong.parameterization.solve(found.output, X_T, level)[0]
    torch.testing.assert_close(solved, expected)


def test_clipping_comes_after_guidance() -> None:
    guided = autoguidance(denoiser_of(Classed(), Cosine(100)), denoiser_of(Crooked(), Cosine(100)), scale=4.0)
    level = guided.schedule(torch.tensor(0.5, dtype=torch.float64))
    free, kept = (guided.at(X_T, level, clip, LABEL) for clip in (None, 0.8))
    torch.testing.assert_close(kept.x, free.x.clamp(-0.8, 0.8))
    torch.testing.assert_close(level.perturb(kept.x, kept.noise), X_T)


@pytest.mark.parametrize("sampler", [Ancestral, DDIM, DPMPP2M, Heun])
def test_samplers_see_what_the_denoiser_says(sampler: type) -> None:
    """A look along a path, of few operations, is the prediction at the level; each class by its own guidance."""
    guided = classifier_free(two_classes(Cosine(100)), scale=1.7, interval=(-4.0, 2.0))
    levels = sampler(8, uniform).chain(guided.schedule).steps.later
    look = guided.prepare(levels, X_T, LABEL)
    for number in range(8):
        level = type(levels)(*(field[number] for field in levels))
        torch.testing.assert_close(look(number, X_T)[0], guided.at(X_T, level, class_label=LABEL).x)


def test_scale_moves_from_all_classes_to_beyond_the_asked_one() -> None:
    """0 draws the mixture, 1 the class, more than 1 what the class has and the others have not."""
    count = 2000
    label = torch.ones(count, dtype=torch.long)

    def drawn(scale: float) -> Tensor:
        guided = classifier_free(two_classes(Cosine(1000)), scale)
        return DDIM(60, uniform, clip=None)(guided, in_turn(normals(1, count, 1, 1, 1)), label).flatten()

    mixture, asked, beyond = drawn(0.0), drawn(1.0), drawn(3.0)
    error = 4 * math.hypot(0.5, TwoClasses.std) / math.sqrt(count)
    assert mixture.mean().abs() < error
    assert (mixture > 0).double().mean().sub(0.5).abs() < 4 * 0.5 / math.sqrt(count)
    assert asked.mean().sub(0.5).abs() < 0.03
    assert asked.std().sub(TwoClasses.std).abs() < 0.02
    assert (beyond > 0).double().mean() > (asked > 0).double().mean()
    assert beyond.mean() > asked.mean() + 0.1
    assert beyond.std() < asked.std()


def test_scale_one_is_no_guidance_and_asks_once() -> None:
    for guided in (
        classifier_free(two_classes(Cosine(100)), scale=1.0),
        classifier_free(two_classes(Cosine(100)), scale=3.0, interval=(50.0, 60.0)),
    ):
        plain = DDIM(5, uniform)(two_classes(Cosine(100)), in_turn(normals(6, 3, 1, 3, 3)), LABEL)
        assert torch.equal(DDIM(5, uniform)(guided, in_turn(normals(6, 3, 1, 3, 3)), LABEL), plain)
        assert len(guided.model.asked) == 5
        level = guided.schedule(torch.tensor(0.5, dtype=torch.float64))
        guided.at(X_T, level, class_label=LABEL)
        assert len(guided.model.asked) == 6


@pytest.mark.parametrize("sampler", [Ancestral(12, uniform), Heun(7, uniform), Heun(7, uniform, churn=4.0)])
@pytest.mark.parametrize("interval", [None, (-2.0, 3.0), (-50.0, 0.0)])
def test_it_costs_what_it_says(sampler: Ancestral, interval: tuple[float, float] | None) -> None:
    guided = classifier_free(two_classes(Cosine(100)), scale=2.0, interval=interval)
    sampler(guided, in_turn(normals(30, 3, 1, 3, 3)), LABEL)
    asked = guided.model.asked
    assert len(asked) == sampler.evaluations(guided)
    steps = sampler.evaluations(two_classes(Cosine(100)))
    assert sum(label is not None for label in asked) == steps
    weak = sum(label is None for label in asked)
    assert weak == steps if interval is None else 0 < weak < steps


def test_the_interval_is_where_it_guides() -> None:
    guided = classifier_free(two_classes(Cosine(100)), scale=2.0, interval=(-2.0, 3.0))
    level = guided.schedule(guided.schedule.time(torch.tensor([-2.1, 0.0, 3.1], dtype=torch.float64)))
    alone, driven = two_classes(Cosine(100)).at(X_T, level, class_label=LABEL), guided.at(X_T, level, class_label=LABEL)
    moved = (alone.x - driven.x).abs().flatten(1).amax(1)
    assert moved[0] == 0
    assert moved[1] > 0
    assert moved[2] == 0


def test_the_reverse_variance_is_the_strong_ones() -> None:
    class Two(Classed):
        def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
            out = super().forward(x, noise_label, class_label)
            return torch.cat([out, 0.1 * out], dim=1)

    strong = denoiser_of(Two(), Cosine(100), Epsilon(), LearnedRange())
    guided = autoguidance(strong, denoiser_of(Crooked(), Cosine(100)), scale=2.0)
    level = guided.schedule(torch.tensor(0.5, dtype=torch.float64))
    raw = guided.at(X_T, level, class_label=LABEL).raw_variance
    assert raw is not None
    assert torch.equal(raw, strong.at(X_T, level, class_label=LABEL).raw_variance)  # type: ignore[arg-type]


def test_guided_denoisers_nest_and_hold_one_set_of_weights() -> None:
    network = nn.Module()
    network.weight = nn.Parameter(torch.ones(3))
    network.forward = lambda x, noise_label, class_label=None: x  # type: ignore[assignment]
    denoiser = denoiser_of(network, Cosine(100))
    guided = classifier_free(denoiser, 2.0)
    assert len(list(guided.parameters())) == 1
    twice = Guided(guided, unconditional(denoiser), 1.5)
    assert twice.schedule is denoiser.schedule


def test_what_cannot_guide_is_refused() -> None:
    denoiser = denoiser_of(Classed(), Cosine(100))
    with pytest.raises(ValueError, match=r"^scale must not be negative, got -1: 1 is no guidance$"):
        classifier_free(denoiser, -1.0)
    with pytest.raises(ValueError, match=r"^interval must rise from the lowest λ to the highest, got \[2.0, -2.0\]$"):
        classifier_free(denoiser, 2.0, (2.0, -2.0))
    exploding, brighter = (denoiser_of(Classed(), LogLinearSigma(0.002, most)) for most in (80.0, 90.0))
    with pytest.raises(ValueError, match=r"^the guide has another schedule"):  # α = 1 in both
        Guided(exploding, brighter, 2.0)
    with pytest.raises(ValueError, match=r"^the guide has another schedule"):
        autoguidance(denoiser, denoiser_of(Crooked(), LinearBeta(100)), 2.0)


def test_guided_samples_are_those_of_edm2s_code() -> None:
    """Autoguidance within Heun's method with churn, step by step."""
    given = fixture("scalars/edm2_phema_lr_loss_sampler")
    said = given.facts["settings"]["sampler"]
    strong, weak = (
        Denoiser(ToyOfEDM2(slope), LogLinearSigma(), Karras(), FixedSmall(), QuarterLogSigma()) for slope in (1.0, 0.5)
    )
    guided = autoguidance(strong, weak, scale=said["guidance"])
    sampler = Heun(
        said["num_steps"],
        partial(karras, timesteps=10**12),
        clip=None,
        churn=said["S_churn"],
        churn_min=said["S_min"],
        churn_max=said["S_max"],
        churn_noise=said["S_noise"],
    )
    noises = [given.inputs["sampler/noise"].double(), *given.inputs["sampler/noises"]]
    path = list(sampler.path(guided, in_turn(torch.stack(noises))))
    stored = given.outputs["sampler/eval_x"]  # of both evaluations of a step, after its churn
    for step in (0, 3, 4):  # the next step has no churn
        torch.testing.assert_close(path[step].x_t, stored[2 * step + 2], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(path[-1].x_t, given.outputs["sampler/x_final"].double(), rtol=1e-7, atol=1e-7)


class NeedsClass(nn.Module):
    """A network of a user's that is always given a class: the number of classes for none."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(3, 1)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor) -> Tensor:
        return x * self.rows(class_label)[:, :, None, None]


def test_a_network_that_needs_a_class_is_given_the_number_of_classes_for_none() -> None:
    denoiser = denoiser_of(NeedsClass(), Cosine(10))
    guide = unconditional(denoiser)
    guide.model.classes = 2  # type: ignore[assignment]
    x, t = normals(2, 1, 3, 3).float(), torch.tensor([0.3, 0.6], dtype=torch.float64)
    none = torch.tensor([2, 2])
    assert torch.equal(guide(x, t, class_label=torch.tensor([0, 1])).output, denoiser(x, t, class_label=none).output)
