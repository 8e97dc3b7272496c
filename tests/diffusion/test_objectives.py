"""The regression is the simplified loss, a pure function of (x, t, ε), least at the optimum."""

from __future__ import annotations

import torch

from noising.diffusion.objectives import Regression
from noising.diffusion.parameterizations import CleanImage, Epsilon, Velocity
from noising.diffusion.schedules import Schedule
from noising.diffusion.weightings import min_snr, snr, uniform
from tests.diffusion.conftest import Crooked, denoiser_of, gaussian_denoiser, images, normals

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
