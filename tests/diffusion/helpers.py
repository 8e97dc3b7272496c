"""Chains, denoisers and images that the tests of the mathematics share; float64 wherever equality is claimed."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from abc import ABC
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

import noising.diffusion
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.levels import Straight, VarianceExploding
from noising.diffusion.noise_labels import LogSNR
from noising.diffusion.parameterizations import CleanImage, Epsilon, Flow, Karras, Parameterization, Score, Velocity
from noising.diffusion.samplers import WeightedSum
from noising.diffusion.schedules import (
    VPSDE,
    Cosine,
    GreyLevelLogSNR,
    LearnedLine,
    LearnedLogSNR,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    RectifiedFlow,
    ResolutionShift,
    ScaledLinearBeta,
    Schedule,
    SigmoidAlphaBar,
    SigmoidBeta,
    TabulatedBeta,
    ZeroTerminalSNR,
)
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedSmall, ReverseVariance
from noising.oracles.oracle import oracle_denoiser
from noising.oracles.pixels import PixelMixture, gaussian
from tests.reference import ddpm

TABULATED: dict[str, Callable[[int], TabulatedBeta]] = {
    "linear": LinearBeta,
    "cosine": Cosine,
    "scaled_linear": ScaledLinearBeta,
    "sigmoid_beta": SigmoidBeta,
}
SCHEDULES: dict[str, Schedule] = {
    **{name: make(1000) for name, make in TABULATED.items()},
    "cosine_exploding": Cosine(1000, geometry=VarianceExploding()),
    "linear_straight": LinearBeta(1000, geometry=Straight()),
    "sigmoid_alpha_bar": SigmoidAlphaBar(),
    "linear_log_snr": LinearLogSNR(),
    "grey_levels": GreyLevelLogSNR(17),
    "log_linear_sigma": LogLinearSigma(),
    "vpsde": VPSDE(),
    "rectified_flow": RectifiedFlow(),
    "learned": LearnedLogSNR(),
    "learned_line": LearnedLine(image_scale=255 / 256),
    "zero_terminal": ZeroTerminalSNR(LinearBeta(1000)),
    "shifted": ResolutionShift(Cosine(1000), 32),
}
PARAMETERIZATIONS = (Epsilon, CleanImage, Velocity, Score, Flow, Karras)


class Crooked(nn.Module):
    """A network that is nobody's optimum: smooth in x and in the level, so that every term of a bound is at work."""

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        level = noise_label.reshape(-1, 1, 1, 1).to(x)
        return torch.tanh(0.7 * x + 0.2 * x.flip(-1)) + 0.1 * torch.cos(level / 3)


class Classed(Crooked):
    """A Crooked network that listens to the class; a class built in stands for one it is given."""

    def __init__(self, built_in: Tensor | None = None) -> None:
        super().__init__()
        self.built_in = built_in

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        label = class_label if self.built_in is None else self.built_in.repeat(len(x) // len(self.built_in))
        assert label is not None, "the class did not reach the network"
        return super().forward(x, noise_label) + 0.3 * label.reshape(-1, 1, 1, 1).to(x)


def denoiser_of(
    model: nn.Module,
    schedule: Schedule,
    parameterization: Parameterization | None = None,
    variance: ReverseVariance | None = None,
) -> Denoiser:
    """A denoiser that predicts ε with fixed small variances, unless told otherwise."""
    return Denoiser(model, schedule, parameterization or Epsilon(), variance or FixedSmall(), LogSNR())


def gaussian_denoiser(
    std: float,
    schedule: Schedule,
    parameterization: Parameterization | None = None,
    variance: ReverseVariance | None = None,
) -> Denoiser:
    """The optimal denoiser of pixels from N(0, std²)."""
    return oracle_denoiser(gaussian(std), schedule, parameterization or Epsilon(), variance or FixedSmall())


def mixture(*stds: float) -> PixelMixture:
    """Pixels from two Gaussians, by default 0.3 and 0.4 wide."""
    values = ([0.4, 0.6], [-0.5, 0.6], stds or [0.3, 0.4])
    return PixelMixture(*(torch.tensor(value, dtype=torch.float64) for value in values))


def final_classes(base: type) -> set[type]:
    """Every concrete class of the package under this base, in whichever module."""
    for module in pkgutil.walk_packages(noising.diffusion.__path__, "noising.diffusion."):
        importlib.import_module(module.name)
    found: set[type] = set()
    waiting = [base]
    while waiting:
        children = waiting.pop().__subclasses__()
        waiting += children
        final = (child for child in children if ABC not in child.__bases__ and not inspect.isabstract(child))
        found |= {child for child in final if child.__module__.startswith("noising.")}
    return found


def images(count: int, levels: int = 17, side: int = 3, seed: int = 0) -> Tensor:
    """(count, 1, side, side) float64 on the grid of grey levels."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randint(0, levels, (count, 1, side, side), generator=generator).double() / (levels - 1) - 1


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def single_step(
    sampler: WeightedSum, denoiser: Denoiser, chain: Chain, step: int, x_t: Tensor, x: Tensor, z: Tensor
) -> Tensor:
    """x_s by one step of a sampler with no memory, from x̂ = x and the noise z."""
    keep, take, again, log_std, _ = (float(field[step - 1]) for field in sampler.weights(denoiser, chain.steps))
    assert again == 0
    return keep * x_t + take * x + math.exp(log_std) * z


def in_turn(noises: Tensor) -> Callable[[], Tensor]:
    """A source of noise that gives noises[0], noises[1], ..."""
    given: Iterator[Tensor] = iter(noises)
    return lambda: next(given)


def pair(name: str, timesteps: int) -> tuple[Chain, ddpm.DDPM]:
    """A chain, and the float64 reference of the same betas."""
    schedule = {"linear": LinearBeta, "cosine": Cosine}[name](timesteps)
    beta = {"linear": ddpm.linear_beta, "cosine": ddpm.cosine_beta}[name](timesteps)
    return Chain.uniform(schedule, timesteps), ddpm.DDPM(beta)


def close(ours: torch.Tensor, theirs: np.ndarray | float, rtol: float = 1e-9, atol: float = 0.0) -> None:
    """Require agreement with the reference's array, or with one number everywhere."""
    expected = torch.as_tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(ours, expected.expand_as(ours), rtol=rtol, atol=atol)


def epsilon_of(model: torch.nn.Module, parameterization: Parameterization, chain, clip: bool):  # type: ignore[no-untyped-def]
    """The network's ε̂ as the reference asks for it: (x_t, t) -> array."""

    def predict(x_t: np.ndarray, t: int) -> np.ndarray:
        level = chain.level(t)
        tensor = torch.from_numpy(x_t)
        output = model(tensor, level.log_snr.expand(len(tensor)))
        return parameterization.solve(output, tensor, level)[1].numpy()

    return predict


def randomized(seed: int = 0) -> LearnedLogSNR:
    """A learned schedule far from where it starts."""
    schedule = LearnedLogSNR(9, -7, width=16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter.add_(2 * torch.randn(parameter.shape, generator=generator))
    return schedule


class ToyOfEDM2(nn.Module):
    """D = tanh(slope x)/(1 + σ) as the network of EDM's preconditioning, and u = 0.3 ln σ + 0.1."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = slope
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        sigma = (4 * noise_label).exp().reshape(-1, 1, 1, 1)
        total = sigma**2 + 0.25
        noisy = x * total.sqrt()
        clean = (self.slope * noisy).tanh() / (1 + sigma)
        return (clean - 0.25 / total * noisy) * total.sqrt() / (0.5 * sigma)

    def log_variance(self, noise_label: Tensor) -> Tensor:
        self.asked.append(noise_label)
        return 0.3 * 4 * noise_label + 0.1
