"""Control variates have the mean that they claim, of the denoiser that they claim."""

from __future__ import annotations

import pytest
import torch

from noising.diffusion.likelihood.controls import Controls, ControlVariates
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.schedules import Cosine, LogLinearSigma
from noising.diffusion.transitions import Chain
from tests.diffusion.helpers import images, normals


def variates_of(x: torch.Tensor) -> ControlVariates:
    return ControlVariates(ImageSet(len(x), lambda index: (x[index], None), ""))


@pytest.mark.parametrize("schedule", [Cosine(20), LogLinearSigma()], ids=["preserving", "exploding"])
def test_the_noise_s_is_the_error_of_the_linear_denoiser_less_its_mean(schedule: Cosine | LogLinearSigma) -> None:
    x = images(30, side=4) * torch.linspace(0.1, 1, 4, dtype=torch.float64)
    chain, steps, noise = Chain.uniform(schedule, 20), torch.arange(30) % 20 + 1, normals(30, 1, 4, 4)
    level = chain.level(steps)
    found = variates_of(x).of_noise(x, level, noise)

    mean, variance = x.mean(0), x.var(0, correction=0)
    variance = (30 * variance + 4 * variance.mean()) / 34  # four images' weight of the mean of all pixels
    gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
    error = mean + gain * (level.perturb(x, noise) - level.alpha * mean) - x
    expected = ((level.alpha * gain - 1) * (x - mean)) ** 2 + (gain * level.sigma) ** 2  # of error²
    torch.testing.assert_close(found, (error**2 - expected).mean((1, 2, 3)), rtol=1e-9, atol=1e-12)


def test_the_images_are_their_energy_and_their_gradients_made_comparable() -> None:
    x = images(2500, side=3)  # more than are read at once
    found = variates_of(x).of_images
    energy = (x**2).sum((1, 2, 3))
    gradients = (x[..., 1:] - x[..., :-1]).abs().sum((1, 2, 3)) + (x[..., 1:, :] - x[..., :-1, :]).abs().sum((1, 2, 3))
    for column, values in zip(found.T, (energy, gradients), strict=True):
        torch.testing.assert_close(column, (values - values.mean()) / values.std(correction=0))


def test_images_that_are_all_alike_have_none() -> None:
    nearly = 1000 + 1e-4 * torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert not variates_of(nearly).of_images[:, 0].any()  # alike but for rounding, by the measure of their size
    assert variates_of(nearly / 1000 + 0.1 * normals(5, 1, 2, 2)).of_images.any()
    assert not variates_of(torch.full((3, 1, 2, 2), 0.3)).of_images.any()
    one = variates_of(images(1))
    assert not one.of_images.any()
    chain = Chain.uniform(Cosine(10), 10)
    assert not one.of_noise(images(1), chain.level(torch.tensor([5])), normals(1, 1, 3, 3)).any()  # no variance


def test_what_is_taken_off_an_image_is_the_sum_over_its_steps() -> None:
    x = images(5)
    controls = Controls(variates_of(x), torch.tensor([1, 2, 5, 11]), normals(3, 3))
    index, steps = torch.arange(5).repeat_interleave(10), torch.arange(1, 11).repeat(5)
    by_step = controls(index, steps, torch.zeros(50, dtype=torch.float64)).reshape(5, 10)
    torch.testing.assert_close(controls.of_bound(torch.arange(5)), by_step.sum(1))
    torch.testing.assert_close(by_step.sum(0), torch.zeros(10, dtype=torch.float64), atol=1e-12, rtol=0)
    with_noise = controls(index, steps, torch.ones(50, dtype=torch.float64)).reshape(5, 10)
    expected = controls.coefficients[[0, 1, 1, 1, 2, 2, 2, 2, 2, 2], 0]
    torch.testing.assert_close(with_noise - by_step, expected.expand(5, 10))
