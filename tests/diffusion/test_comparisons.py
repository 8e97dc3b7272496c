"""What is predicted and what is compared are two choices: the loss is that of what is compared, to the last digits."""

from __future__ import annotations

import itertools
import math
import pickle
import re

import pytest
import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.loss_weights import nine_comparisons
from noising.diffusion.noise_labels import ScaledTime
from noising.diffusion.objectives import Hybrid, Objective, Regression, WeightedBound
from noising.diffusion.parameterizations import CleanImage, Epsilon, Flow, Parameterization, Velocity
from noising.diffusion.recipe import Recipe, conflicts, uneven
from noising.diffusion.schedules import Cosine, LinearBeta, LinearLogSNR, RectifiedFlow, Schedule, ZeroTerminalSNR
from noising.diffusion.times import Grid, LogitNormal, LowDiscrepancy, TimeSampler, Uniform
from noising.diffusion.variances import FixedSmall, LearnedRange
from noising.diffusion.weightings import edm, min_snr, p2, sigmoid, snr, uniform
from tests.diffusion.helpers import PARAMETERIZATIONS, Crooked, denoiser_of, images, normals

T = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
PATHS: list[tuple[Schedule, type[Parameterization]]] = [
    (LinearLogSNR(6, -6), Velocity),
    (Cosine(1000), Velocity),
    (RectifiedFlow(), Flow),
]
"""A schedule, and the velocity of its path."""


def test_a_comparison_is_that_of_its_own_parameterization() -> None:
    """The squared error of what is compared, each computed from the output by the solution for (x̂, ε̂): to 1e-12."""
    for (schedule, velocity), weighting in itertools.product(PATHS, (uniform, p2)):
        x, noise, level = images(5), normals(5, 1, 3, 3), schedule(T)
        for predicted, compared in itertools.product((CleanImage(), Epsilon(), velocity()), repeat=2):
            denoiser = denoiser_of(Crooked(), schedule, predicted)
            loss = Regression(weighting, compared)(denoiser, x, T, noise)["loss"]
            estimate = denoiser.at(level.perturb(x, noise), level)
            a, b = compared.mix(level)
            error = (a * (x - estimate.x) + b * (noise - estimate.noise)).square().mean((1, 2, 3))
            expected = weighting(level, compared.gain(level)).flatten() * error
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_weights_are_the_closed_forms() -> None:
    """The factor between the squared errors, from the ratios of signal and noise."""
    for schedule, velocity in PATHS:
        level = schedule(T)
        signal, noise = level.alpha.flatten(), level.sigma.flatten()
        sharp = signal**2 + noise**2 if velocity is Velocity else 1  # ‖v − v̂‖ = sharp ‖x − x̂‖/σ
        on_x = {"x": torch.ones_like(signal), "ε": signal / noise, "v": sharp / noise}
        for predicted, compared, weight in nine_comparisons(schedule, level):
            expected = (on_x[compared] / on_x[predicted]) ** 2
            torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)


def test_comparing_what_is_predicted_changes_nothing(schedule: Schedule) -> None:
    x, noise = images(5), normals(5, 1, 3, 3)
    for kind in PARAMETERIZATIONS:
        denoiser = denoiser_of(Crooked(), schedule, kind())
        for weighting in (uniform, min_snr):
            plain, compared = (Regression(weighting, space)(denoiser, x, T, noise) for space in (None, kind()))
            assert torch.equal(plain["loss"], compared["loss"])


def test_a_weight_on_the_image_or_the_noise_is_the_same_whatever_is_compared(schedule: Schedule) -> None:
    level = schedule(T)
    for kind, space, weighting in itertools.product(PARAMETERIZATIONS, PARAMETERIZATIONS, (snr, min_snr, edm, sigmoid)):
        gain = kind().gain(level)
        for objective in (Regression, WeightedBound):
            ours, plain = (objective(weighting, c).weight(schedule, level, gain) for c in (space(), None))
            torch.testing.assert_close(ours, plain, rtol=1e-10, atol=0)


def test_the_hybrid_compares_in_its_regression_alone() -> None:
    """The bound beside it, which trains the variance, stays."""
    schedule, steps, decoder = LinearBeta(100), 100, DiscretizedGaussian()
    x, noise = images(5), normals(5, 1, 3, 3)
    t = torch.tensor([1, 25, 50, 75, 100], dtype=torch.float64) / steps

    class Two(Crooked):
        def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
            return super().forward(x, noise_label).repeat(1, 2, 1, 1)

    denoiser = Denoiser(Two(), schedule, CleanImage(), LearnedRange(), ScaledTime())
    terms = Hybrid(uniform, steps, decoder, 0.1, Velocity())(denoiser, x, t, noise)
    plain = Hybrid(uniform, steps, decoder, 0.1)(denoiser, x, t, noise)
    assert torch.equal(terms["bound"], plain["bound"])
    weight = 1 / schedule(t).sigma.flatten() ** 2
    torch.testing.assert_close(terms["loss"], weight * terms["mse"] + 0.1 * terms["bound"], rtol=1e-10, atol=0)


def test_floor_is_jits() -> None:
    """v = (x − z)/max(1 − t, 0.05) at their time t, for target and estimate: the squared error of their v, to 1e-12."""
    schedule, floor = RectifiedFlow(), 0.05
    t = torch.tensor([0.001, 0.03, 0.05, 0.2, 0.9], dtype=torch.float64)
    x, noise = images(5), normals(5, 1, 3, 3)
    z = (1 - t).reshape(-1, 1, 1, 1) * x + t.reshape(-1, 1, 1, 1) * noise
    denoiser = denoiser_of(Crooked(), schedule, CleanImage())
    least = t.clamp(min=floor).reshape(-1, 1, 1, 1)
    estimate = Crooked()(z, schedule.log_snr(t))
    expected = ((x - z) / least - (estimate - z) / least).square().mean((1, 2, 3))
    loss = Regression(uniform, Flow(), sigma_floor=floor)(denoiser, x, t, noise)["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_floor_is_of_what_is_divided_by_sigma() -> None:
    """α/0.3 and 1/0.3 instead of α/σ and 1/σ near clean; 1 for the image itself at every level."""
    for schedule, velocity in PATHS:
        level = schedule(T)
        least, signal = level.sigma.clamp(min=0.3), level.alpha
        assert bool((level.sigma < 0.3).any())
        sharp = signal**2 + level.sigma**2 if velocity is Velocity else torch.ones_like(signal)
        expected = {CleanImage: torch.ones_like(signal), Epsilon: (signal / least) ** 2, velocity: (sharp / least) ** 2}
        for compared, weight in expected.items():
            found = Regression(uniform, compared(), 0.3).weight(schedule, level, torch.ones_like(signal))
            torch.testing.assert_close(found, weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("compared", "floor", "message"),
    [
        (None, 0.05, "sigma_floor is of a comparison: add parameterization@objective.compared=velocity"),
        (Flow(), 0.0, "sigma_floor must be positive, got 0.0"),
    ],
)
def test_a_floor_of_nothing_is_refused(compared: Parameterization | None, floor: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Regression(uniform, compared, floor)


def test_objectives_that_compare_can_be_pickled() -> None:
    """Spawned ranks are given theirs in that way."""
    schedule, level = Cosine(1000), Cosine(1000)(T)
    objective = Regression(min_snr, Velocity(), 0.1)
    copy: Objective = pickle.loads(pickle.dumps(objective))
    ours, theirs = (one.weight(schedule, level, Epsilon().gain(level)) for one in (objective, copy))
    assert torch.equal(ours, theirs)


def recipe(
    schedule: Schedule,
    predicted: Parameterization,
    objective: Objective,
    times: TimeSampler | None = None,
) -> Recipe:
    times = times or LowDiscrepancy()
    return Recipe(schedule, predicted, ScaledTime(), FixedSmall(), times, objective, DiscretizedGaussian())


def test_all_nine_are_finite_and_four_are_said_to_be_uneven() -> None:
    """On the default schedule, with continuous times and with the chain's own."""
    for times in (LowDiscrepancy(), Uniform(), Grid(1000)):
        said = {}
        for predicted, compared in itertools.product((CleanImage(), Epsilon(), Velocity()), repeat=2):
            parts = recipe(Cosine(1000), predicted, Regression(uniform, compared), times)
            assert list(conflicts(parts)) == []
            said[type(predicted).__name__, type(compared).__name__] = uneven(parts)
        expected = {(one, two) for one in ("CleanImage", "Epsilon") for two in ("CleanImage", "Epsilon", "Velocity")}
        expected -= {("CleanImage", "CleanImage"), ("Epsilon", "Epsilon")}
        assert {pair for pair, message in said.items() if message} == expected


def test_unevenness_is_a_thousand_times_the_median() -> None:
    """λ is uniform from 2k to −2k, so that 1/σ² = 1 + e^λ is 2 in the middle and 1 + e^2k at most."""
    for times_of_median, warns in ((900, False), (1100, True)):
        k = math.log(2 * times_of_median) / 2
        parts = recipe(LinearLogSNR(2 * k, -2 * k), CleanImage(), Regression(uniform, Velocity()))
        assert (uneven(parts) is not None) == warns
    message = uneven(recipe(Cosine(1000), CleanImage(), Regression(uniform, Velocity())))
    assert message is not None
    assert "for CleanImage compared as Velocity, the largest weight (at λ = 13.0) is " in message
    assert message.endswith(
        "tune the learning rate, or use objective.sigma_floor=0.05, or parameterization=velocity or flow"
    )
    noisy = uneven(recipe(Cosine(1000), Epsilon(), Regression(uniform, Velocity())))
    assert noisy is not None
    assert noisy.endswith("or use parameterization=velocity, flow or clean_image")
    assert uneven(recipe(Cosine(1000), CleanImage(), Regression(uniform))) is None


STRAIGHT = r"objective.compared: for CleanImage compared as Flow, the mean weight is infinite, .*sigma_floor=0.05"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (recipe(RectifiedFlow(), CleanImage(), Regression(uniform, Flow())), STRAIGHT),
        (
            recipe(RectifiedFlow(), CleanImage(), Regression(uniform, Epsilon()), Uniform()),
            "compared as Epsilon, the mean",
        ),
        (recipe(RectifiedFlow(), CleanImage(), Regression(uniform, Flow()), Grid(1000)), None),
        (recipe(RectifiedFlow(), CleanImage(), Regression(uniform, Flow()), LogitNormal()), None),
        (recipe(RectifiedFlow(), CleanImage(), Regression(uniform, Flow(), 0.05)), None),
        (recipe(RectifiedFlow(), CleanImage(), Regression(uniform, CleanImage())), None),
        (recipe(RectifiedFlow(), Flow(), Regression(uniform, Epsilon())), None),
        (recipe(Cosine(1000), CleanImage(), WeightedBound(uniform, Velocity())), "the mean weight is infinite"),
        (
            recipe(ZeroTerminalSNR(Cosine(1000)), Epsilon(), Regression(uniform, CleanImage())),
            r"for Epsilon compared as CleanImage, the weight at t = 1 is infinite, as α is 0; use param",
        ),
        (
            recipe(ZeroTerminalSNR(Cosine(1000)), Epsilon(), Regression(uniform, Velocity())),
            r"for Epsilon compared as Velocity, the weight at t = 1 is infinite, as α is 0; use param",
        ),
        (recipe(ZeroTerminalSNR(Cosine(1000)), CleanImage(), Regression(uniform, Epsilon())), None),
        (recipe(ZeroTerminalSNR(Cosine(1000)), Velocity(), Regression(uniform, CleanImage())), None),
        (
            recipe(ZeroTerminalSNR(Cosine(1000)), CleanImage(), Regression(min_snr, Epsilon())),
            "the weight at t = 1 is 0/0, as α is 0; use weighting=uniform",
        ),
    ],
)
def test_only_an_infinite_weight_is_refused(parts: Recipe, message: str | None) -> None:
    found = list(conflicts(parts))
    if message is None:
        assert found == []
    else:
        assert re.search(message, found[-1]), found
