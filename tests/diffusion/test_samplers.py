"""Samplers: each step is the papers', the identities between them hold, and on Gaussian data they converge."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from noising.diffusion.grids import karras, quadratic, uniform
from noising.diffusion.parameterizations import Velocity
from noising.diffusion.samplers import DDIM, DPMPP2M, Ancestral, Heun, Sampler
from noising.diffusion.schedules import Cosine, LogLinearSigma, Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, Learned, LearnedRange, ReverseVariance
from tests.diffusion.helpers import (
    Crooked,
    close,
    denoiser_of,
    epsilon_of,
    final_classes,
    gaussian_denoiser,
    in_turn,
    normals,
    pair,
    single_step,
)
from tests.reference import ddpm


def test_every_final_class_is_tested() -> None:
    assert final_classes(Sampler) == {Ancestral, DDIM, Heun, DPMPP2M}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_single_steps_are_the_references(name: str, clip: float | None) -> None:
    chain, reference = pair(name, 1000)
    x_t, z = normals(3, 1, 3, 3), normals(3, 1, 3, 3, seed=1)
    for variance, table in ((FixedSmall(), reference.fixed_small), (FixedLarge(), reference.fixed_large)):
        denoiser = denoiser_of(Crooked(), chain.schedule, variance=variance)
        predict = epsilon_of(Crooked(), denoiser.parameterization, chain, False)
        reverse = ddpm.Reverse(predict, table, ddpm.discretized_gaussian(17), clip=clip is not None)
        for t in (1, 2, 500, 1000):
            x = denoiser.at(x_t, chain.level(t), clip).x
            ours = single_step(Ancestral(1000, uniform, clip), denoiser, chain, t, x_t, x, z)
            close(ours, reference.ancestral_step(x_t.numpy(), t, z.numpy(), reverse), rtol=1e-7, atol=1e-9)
            for eta in (0.0, 0.4, 1.0):
                ours = single_step(DDIM(1000, uniform, clip, eta=eta), denoiser, chain, t, x_t, x, z)
                theirs = reference.ddim_step(x_t.numpy(), t, t - 1, z.numpy(), reverse, eta)
                close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_long_ddim_steps_are_the_references() -> None:
    chain, reference = pair("cosine", 1000)
    denoiser = denoiser_of(Crooked(), chain.schedule)
    sampler = DDIM(10, uniform, eta=0.3)
    coarse = sampler.chain(chain.schedule)
    predict = epsilon_of(Crooked(), denoiser.parameterization, chain, False)
    reverse = ddpm.Reverse(predict, reference.fixed_small, ddpm.discretized_gaussian(17), clip=True)
    x_t, z = normals(3, 1, 3, 3), normals(3, 1, 3, 3, seed=1)
    for step in (1, 4, 10):
        x = denoiser.at(x_t, coarse.level(step), 1.0).x
        ours = single_step(sampler, denoiser, coarse, step, x_t, x, z)
        theirs = reference.ddim_step(x_t.numpy(), 100 * step, 100 * (step - 1), z.numpy(), reverse, 0.3)
        close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_whole_paths_are_the_references(name: str, clip: float | None) -> None:
    """Every point from the same x_T by the same noise: Ho et al., algorithm 2; Song et al., equation 12."""
    chain, reference = pair(name, 50)
    denoiser = denoiser_of(Crooked(), chain.schedule, variance=FixedLarge())
    predict = epsilon_of(Crooked(), denoiser.parameterization, chain, False)
    reverse = ddpm.Reverse(predict, reference.fixed_large, ddpm.discretized_gaussian(17), clip=clip is not None)
    noises = normals(51, 3, 1, 3, 3)
    for eta in (None, 0.0, 0.6):
        sampler = Ancestral(50, uniform, clip) if eta is None else DDIM(50, uniform, clip, eta=eta)
        x_t = noises[0].numpy()
        for t, point in zip(range(50, 0, -1), sampler.path(denoiser, in_turn(noises)), strict=True):
            z = noises[51 - t].numpy()
            clean = reference.x0_from_eps(x_t, t, predict(x_t, t), reverse.clip)
            if eta is None:
                x_t = reference.ancestral_step(x_t, t, z, reverse)
            else:
                x_t = reference.ddim_step(x_t, t, t - 1, z, reverse, eta)
            close(point.clean, clean, rtol=1e-6, atol=1e-8)
            close(point.x_t, x_t, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("clip", [None, 0.8])
def test_ddim_with_eta_one_is_ancestral_with_the_posteriors_variance(preserving: Schedule, clip: float | None) -> None:
    denoiser = denoiser_of(Crooked(), preserving, variance=FixedSmall())
    noises = normals(26, 2, 1, 3, 3)
    one = DDIM(25, uniform, clip, eta=1.0)(denoiser, in_turn(noises))
    two = Ancestral(25, uniform, clip)(denoiser, in_turn(noises))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_ddim_with_eta_zero_is_eulers_method(preserving: Schedule) -> None:
    """d(x/α)/d(σ/α) = ε̂, stepped by hand."""
    denoiser = denoiser_of(Crooked(), preserving, Velocity())
    start = normals(2, 1, 3, 3)
    ours = [point.x_t for point in DDIM(20, uniform, None).path(denoiser, lambda: start)]
    chain = Chain(preserving, uniform(20, preserving))
    x_t = start
    for step in range(20, 0, -1):
        t, s = chain.level(step), chain.level(step - 1)
        noise = denoiser.at(x_t, t).noise
        x_t = s.alpha * (x_t / t.alpha + (s.sigma / s.alpha - t.sigma / t.alpha) * noise)
        torch.testing.assert_close(ours[20 - step], x_t, rtol=1e-8, atol=1e-8)


def _std_error(steps: int, std: float = 0.5) -> float:
    """How far DDIM's image of x_T's standard deviation, in units of it, is from the data's. The map is linear."""
    denoiser = gaussian_denoiser(std, Cosine(1000))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return abs(DDIM(steps, uniform, None)(denoiser, lambda: one).item() - std)


def test_ddim_converges_with_order_one() -> None:
    errors = [_std_error(steps) for steps in (100, 200)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)
    assert errors[1] < 0.02


def test_ancestral_sampling_draws_the_data() -> None:
    """The variance of what is drawn, summed exactly over the linear chain, tends to the data's as T grows."""
    found = []
    for steps in (50, 1000):
        denoiser = gaussian_denoiser(0.5, Cosine(1000))
        sampler = Ancestral(steps, uniform, None)
        chain = sampler.chain(denoiser.schedule)
        one, variance = torch.ones(1, 1, 1, 1, dtype=torch.float64), 1.0
        for step in range(steps, 0, -1):
            reverse = denoiser.reverse(chain[step], one, denoiser.at(one, chain.level(step)))
            added = reverse.log_variance.exp().item() if step > 1 else 0.0
            variance = variance * reverse.mean.item() ** 2 + added
        found.append(variance)
    assert abs(found[1] - 0.25) < 0.02
    assert abs(found[1] - 0.25) < abs(found[0] - 0.25) / 10


def test_last_step_adds_no_noise(schedule: Schedule) -> None:
    denoiser = denoiser_of(Crooked(), schedule, variance=FixedLarge())
    for sampler in (Ancestral(5, uniform), DDIM(5, uniform, eta=1.0)):
        noises = normals(5, 2, 1, 3, 3)  # x_T's and four more: a sixth draw would fail
        sampler(denoiser, in_turn(noises))


by_root = partial(quadratic, timesteps=1000)


def test_path_ends_in_the_image_and_keeps_its_type(preserving: Schedule) -> None:
    denoiser = denoiser_of(Crooked(), preserving)
    for dtype in (torch.float32, torch.float64):
        noises = normals(9, 2, 1, 3, 3).to(dtype)
        points = list(DDIM(8, by_root).path(denoiser, in_turn(noises)))
        image = DDIM(8, by_root)(denoiser, in_turn(noises))
        assert len(points) == 8
        assert image.dtype == dtype
        assert torch.equal(points[-1].x_t, image)
        assert torch.equal(points[-1].clean, image)  # σ = 0: nothing but x̂


def test_grids_end_at_one() -> None:
    assert uniform(4, Cosine(10)).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert quadratic(4, Cosine(16), timesteps=16).tolist() == pytest.approx([1 / 16, 1 / 4, 9 / 16, 1.0])
    for steps in (1, 50, 1000):  # never nearer to clean than the chain's first step, whose label is 0
        times = quadratic(steps, Cosine(1000), timesteps=1000)
        assert times[-1] == 1
        assert steps == 1 or times[0] == pytest.approx(1 / 1000, rel=1e-12)


@pytest.mark.parametrize("rho", [1.0, 7.0])
@pytest.mark.parametrize("schedule", [Cosine(1000), LogLinearSigma()], ids=["preserving", "exploding"])
def test_the_karras_grid_is_even_in_a_root_between_the_chains_ends(schedule: Schedule, rho: float) -> None:
    """Karras et al. (2022), equation 5, from σ/α of the chain's first step to that of its last."""
    t = torch.tensor([1 / 500, 1.0], dtype=torch.float64)
    clean, noisy = (-schedule.log_snr(t) / 2).exp().tolist()
    i = torch.arange(10, dtype=torch.float64)
    expected = (noisy ** (1 / rho) + i / 9 * (clean ** (1 / rho) - noisy ** (1 / rho))) ** rho
    found = (-schedule.log_snr(karras(10, schedule, timesteps=500, rho=rho)) / 2).exp().flip(0)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-6, atol=0)
    assert found[-1].item() == pytest.approx(clean, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"eta": 1.5}, "eta must be between"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDIM(**{"steps": 5, "grid": uniform, **options})  # type: ignore[arg-type]


# Clipping and dynamic thresholding


def kept(sampler: DDIM, x: torch.Tensor) -> torch.Tensor:
    return sampler._clip_clean(x.clone())


def test_a_quantile_by_hand() -> None:
    """|x̂| of 0, ½, …, 4 has the quantile 3 at ¾; a second image, all within 1, is left as it is."""
    strong = torch.linspace(0, 4, 9, dtype=torch.float64).reshape(1, 1, 3, 3) * torch.tensor([1, -1, 1])
    weak = torch.linspace(-0.9, 0.9, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    found = kept(DDIM(1, uniform, clip=1.0, clip_quantile=0.75), torch.cat([strong, weak]))
    torch.testing.assert_close(found[:1], strong.clamp(-3, 3) / 3)
    torch.testing.assert_close(found[1:], weak)
    wide = kept(DDIM(1, uniform, clip=2.0, clip_quantile=0.75), strong)
    torch.testing.assert_close(wide, strong.clamp(-3, 3) / 3 * 2)
    between = kept(DDIM(1, uniform, clip=1.0, clip_quantile=0.8), strong)
    torch.testing.assert_close(between, strong.clamp(-3.2, 3.2) / 3.2)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_it_is_diffusers(quantile: float) -> None:
    from diffusers import DDIMScheduler

    x = 2 * normals(5, 3, 8, 8)
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=100.0)
    ours = kept(DDIM(1, uniform, clip=1.0, clip_quantile=quantile), x)
    torch.testing.assert_close(ours, theirs._threshold_sample(x.clone()))


def test_it_keeps_contrast_where_clipping_saturates() -> None:
    x = 3 * normals(4, 1, 16, 16)
    clipped, thresholded = (kept(DDIM(1, uniform, clip_quantile=q), x) for q in (None, 0.995))
    assert (clipped.abs() == 1).double().mean() > 0.7
    assert (thresholded.abs() == 1).double().mean() < 0.02


def test_every_step_of_a_path_is_within_bounds() -> None:
    denoiser = denoiser_of(Crooked(), Cosine(100))
    for sampler in (DDIM(6, uniform, clip=0.5), DDIM(6, uniform, clip=0.5, clip_quantile=0.9)):
        points = list(sampler.path(denoiser, in_turn(normals(7, 2, 1, 3, 3))))
        assert len(points) == 6
        assert all(float(point.clean.abs().max()) <= 0.5 + 1e-12 for point in points)


@pytest.mark.parametrize(("clip", "quantile"), [(None, 0.9), (1.0, 0.0), (1.0, 1.5)])
def test_bad_quantiles_are_refused(clip: float | None, quantile: float) -> None:
    with pytest.raises(ValueError, match=r"^clip_quantile must be in \(0, 1\] and needs a clip, got "):
        DDIM(5, uniform, clip, quantile)


@pytest.mark.parametrize(("sigma", "evaluations"), [(1000.5, 2), (999.5, 3)])
def test_a_step_from_where_almost_no_signal_is_left_is_eulers(sigma: float, evaluations: int) -> None:
    """From σ/α above 1,000; the last step, to the clean image, is Euler's in any case."""
    denoiser = denoiser_of(Crooked(), LogLinearSigma(0.002, sigma))
    assert Heun(2, uniform).evaluations(denoiser) == evaluations


@pytest.mark.parametrize("grid", [karras, quadratic], ids=["whole", "in part"])
def test_churned_levels_are_the_schedules_own(grid: Callable[..., Tensor]) -> None:
    """Each has the time of its λ, which a network may be told; those beyond the limits stay as they are."""
    schedule = Cosine(1000)
    sampler = Heun(10, partial(grid, timesteps=1000), churn=3.0, churn_min=0.1, churn_max=20.0)
    before = sampler.chain(schedule).steps.later
    after = sampler._churned(schedule, before)
    torch.testing.assert_close(schedule.log_snr(after.t), after.log_snr, rtol=1e-9, atol=1e-9)
    ratio = (-before.log_snr / 2).exp()
    churned = (ratio >= 0.1) & (ratio <= 20.0)
    assert 1 < int(churned.sum()) < 10
    torch.testing.assert_close((before.log_snr - after.log_snr).exp(), torch.where(churned, 1.3**2, 1.0).double())
    for one, same in zip(before, after, strict=True):
        assert torch.equal(one[~churned], same[~churned])


class WithVariance(Crooked):
    """A network with variance channels beside its output, that differ from pixel to pixel."""

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        output = super().forward(x, noise_label, class_label)
        return torch.cat([output, 0.8 * torch.sin(3 * output)], 1)


@pytest.mark.parametrize("variance", [LearnedRange(), Learned()], ids=lambda variance: type(variance).__name__)
def test_ancestral_noise_is_as_wide_as_the_network_says(variance: ReverseVariance) -> None:
    """Every step but the last is a draw of the reverse Gaussian: mean + e^(½ log Σ) z, pixel by pixel."""
    denoiser = denoiser_of(WithVariance(), Cosine(100), variance=variance)
    sampler, noises = Ancestral(5, uniform), normals(5, 2, 1, 3, 3)
    chain, x_t = sampler.chain(denoiser.schedule), noises[0]
    for step, point in zip(range(5, 0, -1), sampler.path(denoiser, in_turn(noises)), strict=True):
        reverse = denoiser.reverse(chain[step], x_t, denoiser.at(x_t, chain.level(step), 1.0))
        drawn = reverse.mean + (reverse.log_variance / 2).exp() * noises[5 - step + 1] if step > 1 else reverse.mean
        torch.testing.assert_close(point.x_t, drawn, rtol=1e-9, atol=1e-9)
        x_t = point.x_t


@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(5, uniform, eta=0.5),
        DPMPP2M(5, uniform),
        DPMPP2M(5, uniform, stochastic=True),
        Heun(5, partial(karras, timesteps=100), churn=2.0),
    ],
    ids=["ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun"],
)
def test_other_noise_is_as_wide_as_the_schedule_says(sampler: Sampler) -> None:
    """Whatever the network says of a variance, which is that of the ancestral step alone."""
    noises = normals(10, 2, 1, 3, 3)
    with_variance = denoiser_of(WithVariance(), Cosine(100), variance=LearnedRange())
    plain = sampler(denoiser_of(Crooked(), Cosine(100)), in_turn(noises))
    torch.testing.assert_close(sampler(with_variance, in_turn(noises)), plain, rtol=1e-12, atol=1e-12)
