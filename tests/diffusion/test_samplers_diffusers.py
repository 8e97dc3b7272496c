"""Step by step against the schedulers of `diffusers`, where semantics agree; and where they differ, how and why."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser, Prediction
from noising.diffusion.grids import trailing, uniform as uniform_grid
from noising.diffusion.noise_labels import DiscreteStep
from noising.diffusion.parameterizations import CleanImage, Epsilon, Parameterization, Velocity
from noising.diffusion.samplers import DDIM, DPMPP2M, Heun, Sampler
from noising.diffusion.schedules import (
    Cosine,
    LinearBeta,
    ScaledLinearBeta,
    SigmoidBeta,
    TabulatedBeta,
    ZeroTerminalSNR,
)
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, Learned, LearnedRange, ReverseVariance
from tests.diffusion.helpers import denoiser_of, images, in_turn, normals, single_step

T = 1000
BETAS: dict[str, TabulatedBeta] = {
    "linear": LinearBeta(T),
    "scaled_linear": ScaledLinearBeta(T, beta_start=1e-4, beta_end=0.02),
    "squaredcos_cap_v2": Cosine(T),
    "sigmoid": SigmoidBeta(T),
}
KINDS: dict[str, Parameterization] = {"epsilon": Epsilon(), "sample": CleanImage(), "v_prediction": Velocity()}
VARIANCES: dict[str, ReverseVariance] = {
    "fixed_small": FixedSmall(),
    "fixed_large": FixedLarge(),
    "learned_range": LearnedRange(),
}
X_T, OUTPUT, RAW = normals(2, 1, 3, 3), normals(2, 1, 3, 3, seed=1), normals(2, 1, 3, 3, seed=2).tanh()


class Given(torch.nn.Module):
    """A network that says OUTPUT, and RAW where it has a second output."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.said = torch.cat([OUTPUT, RAW], 1) if outputs > 1 else OUTPUT

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.said


def ours(schedule: TabulatedBeta, kind: str, variance: ReverseVariance) -> Denoiser:
    return denoiser_of(Given(variance.outputs), schedule, KINDS[kind], variance)


def predict(denoiser: Denoiser, chain: Chain, step: int, clip: bool) -> Prediction:
    return denoiser.at(X_T, chain.level(step), 1.0 if clip else None)


@pytest.mark.parametrize("name", BETAS)
def test_tables(name: str) -> None:
    """Theirs are float32."""
    theirs = DDPMScheduler(T, beta_schedule=name)
    np.testing.assert_allclose(Chain.uniform(BETAS[name], T).beta.numpy(), theirs.betas.numpy(), rtol=2e-5)
    np.testing.assert_allclose(
        Chain.uniform(BETAS[name], T).alpha_bar.numpy(),
        theirs.alphas_cumprod.numpy(),
        rtol=2e-4 if "cos" in name else 2e-5,
    )


@pytest.mark.parametrize("step", [1, 10, 500, 999])
def test_noised_image_and_velocity(step: int) -> None:
    theirs, x, noise = DDPMScheduler(T), images(2), normals(2, 1, 3, 3)
    level = Chain.uniform(BETAS["linear"], T).level(step)
    index = torch.full((2,), step - 1)
    torch.testing.assert_close(level.perturb(x, noise), theirs.add_noise(x, noise, index), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        Velocity().target(x, noise, level), theirs.get_velocity(x, noise, index), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", [1000, 50])
def test_ancestral_step(variance: str, kind: str, clip: bool, steps: int) -> None:
    """The mean and the noise that is added, on the whole chain and on every twentieth step ("trailing")."""
    theirs = DDPMScheduler(
        T, variance_type=variance, prediction_type=kind, clip_sample=clip, timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    denoiser = ours(BETAS["linear"], kind, VARIANCES[variance])
    chain = Chain.uniform(BETAS["linear"], steps)
    said = denoiser.model(X_T, torch.zeros(2))
    for step in (2, steps // 2, steps - 1, steps):
        index = int(theirs.timesteps[steps - step])
        assert index == step * (T // steps) - 1
        transition = chain[step]
        reverse = denoiser.reverse(transition, X_T, predict(denoiser, chain, step, clip))
        generator = torch.Generator().manual_seed(3)
        stepped = theirs.step(said, index, X_T, generator=generator).prev_sample
        noise = torch.randn(OUTPUT.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        torch.testing.assert_close(reverse.sample(noise), stepped, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_step(kind: str, eta: float, clip: bool) -> None:
    """With ε̂ derived again from a clipped x̂ on their side too (`use_clipped_model_output`)."""
    theirs = DDIMScheduler(T, prediction_type=kind, clip_sample=clip, timestep_spacing="trailing")
    theirs.set_timesteps(50)
    denoiser, chain = ours(BETAS["linear"], kind, FixedSmall()), Chain.uniform(BETAS["linear"], 50)
    z = normals(2, 1, 3, 3, seed=4)
    for step in (2, 25, 50):
        x = predict(denoiser, chain, step, clip).x
        mine = single_step(DDIM(50, uniform_grid, eta=eta), denoiser, chain, step, X_T, x, z)
        stepped = theirs.step(
            OUTPUT, int(theirs.timesteps[50 - step]), X_T, eta=eta, use_clipped_model_output=clip, variance_noise=z
        ).prev_sample
        torch.testing.assert_close(mine, stepped, rtol=5e-4, atol=5e-4)


def test_zero_terminal_snr() -> None:
    """To the 3e-7 that come of where √ᾱ is held, and their float32."""
    theirs = DDPMScheduler(T, rescale_betas_zero_snr=True)
    level = ZeroTerminalSNR(BETAS["linear"])(torch.arange(1, T + 1, dtype=torch.float64) / T)
    # theirs ends at 2^-48 "to avoid division by zero", ours at nothing
    np.testing.assert_allclose(level.alpha.flatten().numpy(), theirs.alphas_cumprod.sqrt().numpy(), atol=2e-5)
    assert float(level.alpha[-1]) == 0.0


# --- where they differ


def test_they_do_not_scale_a_linear_beta_by_its_length() -> None:
    """β stays 1e-4..0.02 for any T: four times as much noise at T = 4000. Ours ends where T = 1000 does."""
    theirs = DDPMScheduler(4000).alphas_cumprod[-1].item()
    assert theirs == pytest.approx(4.0e-5**4, rel=0.3)
    assert Chain.uniform(LinearBeta(4000), 4000).alpha_bar[-1].item() == pytest.approx(4.24665e-5, rel=1e-5)


def test_their_first_step_has_no_variance_to_bound_with() -> None:
    """The posterior's is 0 there and kept at 1e-20, where improved DDPM takes the second step's: unseen in sampling,
    which adds no noise there, but a bound with it is another number."""
    theirs = DDPMScheduler(T, variance_type="fixed_small")
    assert float(theirs._get_variance(0)) == pytest.approx(1e-20)
    first = Chain.uniform(BETAS["linear"], T)[1]
    assert FixedSmall().log_variance(first, None).exp().item() == pytest.approx(5.45319e-5, rel=1e-5)
    ranged = DDPMScheduler(T, variance_type="learned_range")
    low = torch.full((1,), -1.0)
    assert float(ranged._get_variance(0, predicted_variance=low)) == pytest.approx(math.log(1e-20), rel=1e-3)
    assert LearnedRange().log_variance(first, low.double()).item() == pytest.approx(math.log(5.45319e-5), rel=1e-5)


def test_their_learned_output_is_a_variance() -> None:
    """As it stands; the reference implementation's, and ours, is its logarithm."""
    theirs = DDPMScheduler(T, variance_type="learned")
    said = torch.tensor([0.3])
    assert float(theirs._get_variance(500, predicted_variance=said)) == pytest.approx(0.3)
    assert Learned().log_variance(Chain.uniform(BETAS["linear"], T)[501], said).exp().item() == pytest.approx(
        math.exp(0.3)
    )


def test_their_ddim_keeps_the_noise_of_before_the_clipping() -> None:
    """By default ε̂ is not derived again: x̂ and ε̂ no longer make up x_t, and η = 1 is not the ancestral step."""
    theirs = DDIMScheduler(T, clip_sample=True, timestep_spacing="trailing")
    theirs.set_timesteps(50)
    denoiser, chain, z = (
        ours(BETAS["linear"], "epsilon", FixedSmall()),
        Chain.uniform(BETAS["linear"], 50),
        normals(2, 1, 3, 3),
    )
    step = 40
    prediction, index = predict(denoiser, chain, step, True), int(theirs.timesteps[50 - step])
    ancestral = denoiser.reverse(chain[step], X_T, prediction).sample(z)
    mine = single_step(DDIM(50, uniform_grid, eta=1.0), denoiser, chain, step, X_T, prediction.x, z)
    torch.testing.assert_close(mine, ancestral, rtol=1e-9, atol=1e-9)
    default = theirs.step(OUTPUT, index, X_T, eta=1.0, variance_noise=z).prev_sample
    derived = theirs.step(OUTPUT, index, X_T, eta=1.0, use_clipped_model_output=True, variance_noise=z).prev_sample
    torch.testing.assert_close(derived, ancestral, rtol=1e-3, atol=1e-3)
    assert (default - ancestral).abs().max() > 0.05


def test_their_default_spacing_never_sees_the_last_step() -> None:
    """ "leading" starts from step 981 of 1000, where some signal is left; ours starts from T."""
    theirs = DDPMScheduler(T)
    theirs.set_timesteps(50)
    assert int(theirs.timesteps[0]) + 1 == 981
    assert (uniform_grid(50, Cosine(T))[-1] * T).item() == 1000


# Whole paths of the solvers


OPTIONS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
SCHEDULE = LinearBeta(T)
GRID = partial(trailing, timesteps=T)


class Listener(nn.Module):
    """ε̂ by place and time, the same for both sides: their label and ours is the step from 0."""

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        t = noise_label.reshape(-1, 1, 1, 1).to(x) / T
        return torch.tanh(0.8 * x) * (0.3 + 0.5 * t) + 0.05 * torch.cos(5 * t)


def our_path(sampler: Sampler, noises: Tensor) -> list[Tensor]:
    denoiser = Denoiser(Listener(), SCHEDULE, Epsilon(), FixedSmall(), DiscreteStep(T))
    return [point.x_t for point in sampler.path(denoiser, in_turn(noises))]


def said(x: Tensor, index: Tensor) -> Tensor:
    answer: Tensor = Listener()(x, torch.full((len(x),), float(index)))
    return answer


@pytest.mark.parametrize("clip", [None, 1.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim(eta: float, clip: float | None) -> None:
    """Clipped, with ε̂ derived again on their side too."""
    theirs = DDIMScheduler(T, clip_sample=clip is not None, **OPTIONS)
    theirs.set_timesteps(20)
    noises = normals(21, 2, 1, 3, 3)
    x = noises[0]
    points = our_path(DDIM(20, GRID, clip, eta=eta), noises)
    for index, now, z in zip(theirs.timesteps, points, [*noises[1:20], torch.zeros_like(x)], strict=True):
        drawn = z if eta else None
        x = theirs.step(
            said(x, index), index, x, eta=eta, use_clipped_model_output=clip is not None, variance_noise=drawn
        ).prev_sample
        torch.testing.assert_close(now, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("stochastic", [False, True], ids=["ode", "sde"])
def test_dpmpp_2m(steps: int, stochastic: bool) -> None:
    """The midpoint form of both; their last step, to σ = 0, is of first order too. Theirs are float32 tables."""
    theirs = DPMSolverMultistepScheduler(
        T,
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        **OPTIONS,
    )
    theirs.set_timesteps(steps)
    noises = normals(steps + 1, 2, 1, 3, 3)
    x = noises[0]
    for number, (index, now) in enumerate(
        zip(theirs.timesteps, our_path(DPMPP2M(steps, GRID, None, stochastic=stochastic), noises), strict=True)
    ):
        # what they draw is handed to them; in the last step it counts for nothing
        drawn = noises[number + 1] if stochastic and number + 1 < steps else torch.zeros_like(x)
        x = theirs.step(said(x, index), index, x, variance_noise=drawn if stochastic else None).prev_sample
        torch.testing.assert_close(now, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [5, 18])
def test_heun(steps: int) -> None:
    """Theirs are in x/α, and have no churn."""
    theirs = HeunDiscreteScheduler(T, **OPTIONS)
    theirs.set_timesteps(steps)
    noises = normals(1, 2, 1, 3, 3)
    chain = Heun(steps, GRID).chain(SCHEDULE)
    x = noises[0] / chain.level(steps).alpha
    looks = iter(theirs.timesteps)
    for step, now in zip(range(steps, 0, -1), our_path(Heun(steps, GRID, None), noises), strict=True):
        for _ in range(2 if step > 1 else 1):
            index = next(looks)
            x = theirs.step(said(theirs.scale_model_input(x, index), index), index, x).prev_sample
        torch.testing.assert_close(now / chain.level(step - 1).alpha, x, rtol=1e-5, atol=1e-5)
