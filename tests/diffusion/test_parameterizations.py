"""Every parameterization: prediction and (x, ε) are one another's image; weights mean the same in each."""

from __future__ import annotations

import math

import pytest
import torch

from noising.diffusion.parameterizations import CleanImage, Epsilon, Flow, Karras, Parameterization, Score, Velocity
from noising.diffusion.schedules import Cosine, LogLinearSigma, RectifiedFlow, Schedule
from noising.diffusion.weightings import edm, min_snr, p2, sigmoid, snr, uniform
from tests.diffusion.helpers import PARAMETERIZATIONS, final_classes, normals

LEVELS = torch.linspace(0.02, 0.98, 7, dtype=torch.float64)


def test_every_final_class_is_tested() -> None:
    assert final_classes(Parameterization) == set(PARAMETERIZATIONS)


@pytest.mark.parametrize("parameterization", [kind() for kind in PARAMETERIZATIONS], ids=lambda p: type(p).__name__)
def test_solving_the_target_gives_image_and_noise(parameterization: Parameterization, schedule: Schedule) -> None:
    x, noise = normals(7, 1, 2, 2), normals(7, 1, 2, 2, seed=1)
    level = schedule(LEVELS)
    target = parameterization.target(x, noise, level)
    solved = parameterization.solve(target, level.perturb(x, noise), level)
    torch.testing.assert_close(solved[0], x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solved[1], noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parameterization", [kind() for kind in PARAMETERIZATIONS], ids=lambda p: type(p).__name__)
def test_gain_is_how_the_output_moves_with_the_image(parameterization: Parameterization, schedule: Schedule) -> None:
    level = schedule(LEVELS)
    x_t, output, error = (normals(7, 1, 2, 2, seed=seed) for seed in range(3))
    moved = parameterization.solve(output + error, x_t, level)[0] - parameterization.solve(output, x_t, level)[0]
    torch.testing.assert_close(parameterization.gain(level) * moved.abs(), error.abs(), rtol=1e-8, atol=0)


def test_mixes_are_the_papers(schedule: Schedule) -> None:
    x, noise = normals(7, 1, 2, 2), normals(7, 1, 2, 2, seed=1)
    level = schedule(LEVELS)
    assert torch.equal(Epsilon().target(x, noise, level), noise)
    assert torch.equal(CleanImage().target(x, noise, level), x)
    torch.testing.assert_close(Velocity().target(x, noise, level), level.alpha * noise - level.sigma * x)


def test_karras_is_edms_preconditioning() -> None:
    """x̂ = c_skip x_t + c_out F(c_in x_t) as published for α = 1; −v for s = 1 on preserved variance."""
    level, output, x_t = LogLinearSigma()(LEVELS), normals(7, 1, 2, 2), normals(7, 1, 2, 2, seed=1)
    s, sigma = 0.7, level.sigma
    c_skip = s**2 / (sigma**2 + s**2)
    c_out = sigma * s / (sigma**2 + s**2).sqrt()
    clean, _ = Karras(s).solve(output, x_t, level)
    torch.testing.assert_close(clean, c_skip * x_t + c_out * output, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(Karras(s).input_scale(level), 1 / (sigma**2 + s**2).sqrt(), rtol=1e-12, atol=0)
    x, noise, preserved = normals(7, 1, 2, 2), normals(7, 1, 2, 2, seed=1), Cosine(1000)(LEVELS)
    velocity = Velocity().target(x, noise, preserved)
    torch.testing.assert_close(Karras(1.0).target(x, noise, preserved), -velocity, rtol=1e-10, atol=1e-12)


def test_score_and_flow_are_the_papers(schedule: Schedule) -> None:
    x, noise, level = normals(7, 1, 2, 2), normals(7, 1, 2, 2, seed=1), schedule(LEVELS)
    torch.testing.assert_close(Score().target(x, noise, level), -noise / level.sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(Flow().target(x, noise, level), noise - x, rtol=1e-12, atol=0)


def test_without_signal_only_some_know_the_image() -> None:
    level = RectifiedFlow()(torch.ones(1))
    x, noise = normals(1, 1, 2, 2), normals(1, 1, 2, 2, seed=1)
    for knowing in (CleanImage(), Velocity(), Flow(), Karras()):
        solved = knowing.solve(knowing.target(x, noise, level), level.perturb(x, noise), level)
        torch.testing.assert_close(solved[0], x)
        torch.testing.assert_close(solved[1], noise)
    assert [float(blind.gain(level)) for blind in (Epsilon(), Score())] == [0, 0]


def test_edm_weights_leave_karras_output_as_it_is() -> None:
    level = LogLinearSigma()(LEVELS)
    weight = edm(level, Karras(0.7).gain(level), sigma_data=0.7)
    torch.testing.assert_close(weight, torch.ones_like(weight), rtol=1e-12, atol=0)


def test_weights_on_the_noise_are_the_papers_for_every_output(schedule: Schedule) -> None:
    level = schedule(LEVELS)
    ratio = level.log_snr.exp()
    for kind in PARAMETERIZATIONS:
        on_noise = kind().gain(level) ** 2 / ratio
        torch.testing.assert_close(p2(level, kind().gain(level)) * on_noise, 1 / (1 + ratio), rtol=1e-9, atol=0)
        torch.testing.assert_close(
            sigmoid(level, kind().gain(level)) * on_noise, 1 / (1 + ratio / math.exp(2)), rtol=1e-9, atol=0
        )


def test_min_snr_weights_are_the_papers(preserving: Schedule) -> None:
    """Hang et al. (2023), section 3.4: min(snr, 5)/snr on ε, min(snr, 5) on x, min(snr, 5)/(snr + 1) on v."""
    level = preserving(LEVELS)
    ratio = level.log_snr.exp()
    least = ratio.clamp(max=5)
    for parameterization, expected in (
        (Epsilon(), least / ratio),
        (CleanImage(), least),
        (Velocity(), least / (ratio + 1)),
    ):
        torch.testing.assert_close(min_snr(level, parameterization.gain(level)), expected, rtol=1e-9, atol=0)


def test_snr_weight_makes_every_output_epsilon(schedule: Schedule) -> None:
    level = schedule(LEVELS)
    x, noise, guess = (normals(7, 1, 2, 2, seed=seed) for seed in range(3))
    x_t = level.perturb(x, noise)
    for parameterization in (kind() for kind in PARAMETERIZATIONS):
        error = (parameterization.target(x, noise, level) - guess) ** 2
        weighted = snr(level, parameterization.gain(level)) * error
        _, predicted = parameterization.solve(guess, x_t, level)
        torch.testing.assert_close(weighted, (noise - predicted) ** 2, rtol=1e-7, atol=1e-10)


def test_uniform_weight_is_one(schedule: Schedule) -> None:
    level = schedule(LEVELS)
    assert torch.equal(uniform(level, Velocity().gain(level)), torch.ones(7, 1, 1, 1, dtype=torch.float64))
