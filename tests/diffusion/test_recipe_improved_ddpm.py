"""Improved DDPM against the float64 reference: learned range, respaced chains, the hybrid loss and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.terms import variational_bound
from noising.diffusion.objectives import Hybrid, VariationalBound
from noising.diffusion.parameterizations import CleanImage, Epsilon, Parameterization
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedLarge, FixedSmall, LearnedRange, ReverseVariance
from noising.diffusion.weightings import uniform
from tests.diffusion.helpers import Crooked, denoiser_of, images, in_turn, normals, pair
from tests.reference import ddpm

LEVELS, PIXELS = 17, 9
BITS = PIXELS * math.log(2)


class CrookedRange(Crooked):
    """With a second output for the variance, in and out of [−1, 1]."""

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        level = noise_label.reshape(-1, 1, 1, 1).to(x)
        return torch.cat([super().forward(x, noise_label), 1.3 * torch.sin(3 * x + level / 2)], 1)


def respaced(name: str, timesteps: int, kept: int) -> tuple[Chain, ddpm.DDPM]:
    """The chain of the kept steps, the first and the last among them; `kept` = timesteps is the whole."""
    chain, whole = pair(name, timesteps)
    steps = np.linspace(1, timesteps, kept).round().astype(int)
    beta = ddpm.respaced_beta(whole.alpha_bar, steps) if kept < timesteps else whole.beta[1:]
    return Chain(chain.schedule, torch.from_numpy(steps).double() / timesteps), ddpm.DDPM(beta)


class Told:
    """What the shared network says at each step, in the reference's terms: ε̂ and log variance."""

    def __init__(self, model: nn.Module, kind: type[Parameterization], chain: Chain, reference: ddpm.DDPM) -> None:
        self.model, self.kind, self.chain, self.reference = model, kind, chain, reference

    def output(self, x_t: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray | None]:
        tensor = torch.from_numpy(x_t)
        said = self.model(tensor, self.chain.level(t).log_snr.expand(len(tensor))).detach().numpy()
        return (said[:, :1], said[:, 1:]) if said.shape[1] > 1 else (said, None)

    def eps(self, x_t: np.ndarray, t: int) -> np.ndarray:
        said, _ = self.output(x_t, t)
        if self.kind is Epsilon:
            return said
        kept, noise = np.sqrt(self.reference.alpha_bar[t]), np.sqrt(self.reference.noise_variance[t])
        return np.asarray((x_t - kept * said) / noise)


class RangeAt:
    """log_variance[t] of the learned range at the x_t that the bound makes of x_0 and its noise."""

    def __init__(self, told: Told, x: np.ndarray, noise: np.ndarray) -> None:
        self.told, self.x, self.noise = told, x, noise

    def __getitem__(self, t: int) -> np.ndarray:
        reference = self.told.reference
        _, raw = self.told.output(reference.noised(self.x, t, self.noise[:, t - 1]), t)
        assert raw is not None
        return reference.learned_range(raw, t)


def agree(
    name: str, timesteps: int, kept: int, variance: ReverseVariance, kind: type[Parameterization], clip: bool
) -> None:
    """Every term to 1e-6 bits/dim, or to 1e-7 of it where an unclipped last step is worth thousands of bits."""
    chain, reference = respaced(name, timesteps, kept)
    x, noise = images(2, LEVELS), normals(len(chain), 2, 1, 3, 3)
    model = CrookedRange() if variance.outputs > 1 else Crooked()
    denoiser = denoiser_of(model, chain.schedule, kind(), variance)
    decoder = DiscretizedGaussian(LEVELS)
    with torch.no_grad():
        ours = variational_bound(denoiser, chain, x, decoder, in_turn(noise), 1.0 if clip else None)
    told, drawn = Told(model, kind, chain, reference), noise.transpose(0, 1).numpy()
    log_variance: object = {
        FixedSmall: reference.fixed_small,
        FixedLarge: reference.fixed_large,
        LearnedRange: RangeAt(told, x.numpy(), drawn),
    }[type(variance)]
    reverse = ddpm.Reverse(told.eps, log_variance, ddpm.discretized_gaussian(LEVELS), clip)  # type: ignore[arg-type]
    theirs = reference.bound(x.numpy(), drawn, reverse)
    terms = ((ours.prior, theirs.prior), (ours.steps, theirs.steps), (ours.decoder, theirs.decoder))
    for mine, other in terms:
        torch.testing.assert_close(mine / BITS, torch.from_numpy(other) / BITS, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("kind", [Epsilon, CleanImage])
@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), LearnedRange()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("kept", [50, 100, 250])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_respaced_bound_is_the_references(
    name: str, kept: int, variance: ReverseVariance, kind: type[Parameterization], clip: bool
) -> None:
    agree(name, 1000, kept, variance, kind, clip)


@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("kind", [Epsilon, CleanImage])
@pytest.mark.parametrize("kept", [50, 100, 250, 4000])
def test_improved_ddpm_of_4000_steps_is_the_references(kept: int, kind: type[Parameterization], clip: bool) -> None:
    agree("cosine", 4000, kept, LearnedRange(), kind, clip)


@pytest.mark.parametrize("kind", [Epsilon, CleanImage])
def test_improved_ddpm_of_1000_steps_whole(kind: type[Parameterization]) -> None:
    agree("cosine", 1000, 1000, LearnedRange(), kind, clip=True)


class Said(nn.Module):
    """A network that says what it is given, so that a loss has a gradient in it."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.output


def reference_bound_term(
    reference: ddpm.DDPM, x: np.ndarray, x_t: np.ndarray, eps: np.ndarray, raw: np.ndarray, t: int
) -> np.ndarray:
    """T L_t in bits/dim, (N,)."""
    log_variance = reference.learned_range(raw, t)
    mean = reference.reverse_mean(x_t, t, eps)
    if t == 1:
        nats = -ddpm.discretized_gaussian(LEVELS)(x, mean, log_variance)
    else:
        true_mean, true_variance = reference.posterior(x, x_t, t)
        nats = ddpm.pixel_sum(ddpm.gaussian_kl(true_mean, np.log(true_variance), mean, log_variance))
    return np.asarray(nats * reference.T / BITS)


def slope(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of Σ f in every number."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up).sum() - function(down).sum()) / (2 * step)
    return gradient


@pytest.mark.parametrize(("name", "timesteps"), [("linear", 1000), ("cosine", 1000), ("cosine", 4000)])
def test_hybrid_loss_and_its_gradient_are_the_references(name: str, timesteps: int) -> None:
    """mse + 0.001 T L_t for every T, the mean held in the second term: the loss and both gradients to 1e-5."""
    chain, reference = pair(name, timesteps)
    x, noise, said = images(2, LEVELS), normals(2, 1, 3, 3), normals(2, 2, 3, 3, seed=5)
    for t in (1, 2, timesteps // 2, timesteps):
        model = Said(said.clone())
        objective = Hybrid(uniform, timesteps, DiscretizedGaussian(LEVELS))
        denoiser = denoiser_of(model, chain.schedule, Epsilon(), LearnedRange())
        terms = objective(denoiser, x, torch.full((2,), t / timesteps, dtype=torch.float64), noise)
        terms["loss"].sum().backward()
        assert model.output.grad is not None

        x_t = reference.noised(x.numpy(), t, noise.numpy())
        eps, raw = said[:, :1].numpy(), said[:, 1:].numpy()
        bound = reference_bound_term(reference, x.numpy(), x_t, eps, raw, t)
        mse = ((eps - noise.numpy()) ** 2).mean((1, 2, 3))
        torch.testing.assert_close(terms["loss"], torch.from_numpy(mse + 0.001 * bound), rtol=1e-9, atol=1e-12)

        def of_raw(raw: np.ndarray, t: int = t, x_t: np.ndarray = x_t, eps: np.ndarray = eps) -> np.ndarray:
            return 0.001 * reference_bound_term(reference, x.numpy(), x_t, eps, raw, t)

        expected = np.concatenate([2 * (eps - noise.numpy()) / PIXELS, slope(of_raw, raw)], 1)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(model.output.grad.numpy() / scale, expected / scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "timesteps"), [("linear", 1000), ("cosine", 4000)])
def test_variational_objective_is_T_times_the_term(name: str, timesteps: int) -> None:  # noqa: N802
    """At the grid's times and at any between: t counts for the step (i − 1)/T < t ≤ i/T that it lies in."""
    chain, reference = pair(name, timesteps)
    x, noise, said = images(2, LEVELS), normals(2, 1, 3, 3), normals(2, 2, 3, 3, seed=5)
    denoiser = denoiser_of(Said(said), chain.schedule, Epsilon(), LearnedRange())
    objective = VariationalBound(timesteps, DiscretizedGaussian(LEVELS))
    for t, inside in ((1, 0.0), (1, 0.7), (2, 0.0), (2, 0.3), (timesteps // 2, 0.9), (timesteps, 0.0)):
        times = torch.full((2,), (t - inside) / timesteps, dtype=torch.float64)
        loss = objective(denoiser, x, times, noise)["loss"].detach()
        x_t = reference.noised(x.numpy(), t, noise.numpy())
        expected = reference_bound_term(reference, x.numpy(), x_t, said[:, :1].numpy(), said[:, 1:].numpy(), t)
        torch.testing.assert_close(loss, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def test_steps_of_one_batch_do_not_mix() -> None:
    """L_0 beside posterior terms in one batch: each image's loss is the one it has alone."""
    chain, _ = pair("cosine", 1000)
    x, noise = images(4, LEVELS), normals(4, 1, 3, 3)
    denoiser = denoiser_of(CrookedRange(), chain.schedule, Epsilon(), LearnedRange())
    objective = VariationalBound(1000, DiscretizedGaussian(LEVELS))
    t = torch.tensor([0.001, 0.4, 0.001, 1.0], dtype=torch.float64)
    together = objective(denoiser, x, t, noise)["loss"]
    alone = [objective(denoiser, x[i : i + 1], t[i : i + 1], noise[i : i + 1])["loss"] for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
