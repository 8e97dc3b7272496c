"""Identities of the parts of training: parameterization, noise label, objective and times."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.noise_labels import LogSNR
from noising.diffusion.recipe import Recipe
from noising.diffusion.schedules import Schedule
from noising.diffusion.times import BatchSlot, TimeSampler
from noising.diffusion.variances import FixedSmall
from noising.oracles.oracle import OracleModel, oracle_denoiser
from noising.oracles.pixels import gaussian, grey_levels
from noising.randomness import generator
from noising.verification.gaussian_data import STD, exact_images, exact_noise
from noising.verification.identity import Identity, count, largest


@torch.no_grad()
def learning_identities(recipe: Recipe, timesteps: int) -> Iterator[Identity]:
    """Check that denoiser and oracle agree, that the loss is least at the oracle, and the density of the times."""
    yield from _parameterization(recipe)
    change = recipe.noise_label(recipe.schedule(torch.linspace(0.02, 1, 50, dtype=torch.float64))).flatten().diff()
    in_order = bool((change > 0).all()) or bool((change < 0).all())
    yield Identity("noise_label", "1 if its values at fifty levels are distinct and in order", 1, float(in_order), 0)
    yield _objective(recipe, timesteps)
    yield from _times(recipe.times, recipe.schedule, timesteps)


def _parameterization(recipe: Recipe) -> Iterator[Identity]:
    oracle = grey_levels(torch.full((5,), 0.2, dtype=torch.float64))
    denoiser = oracle_denoiser(oracle, recipe.schedule, recipe.parameterization, FixedSmall())
    level = recipe.schedule(torch.linspace(0.01, 1, 100, dtype=torch.float64))
    x_t = level.perturb(torch.linspace(-1, 1, 100, dtype=torch.float64).reshape(-1, 1, 1, 1), torch.ones(100, 1, 1, 1))
    prediction = denoiser.at(x_t, level)
    off = prediction.x - oracle.clean(x_t, level)
    yield Identity("parameterization", "x̂ of the oracle's output = E[x | x_t]", 0, largest(off), 1e-6)
    off = (level.perturb(prediction.x, prediction.noise) - x_t) / level.sigma
    yield Identity("parameterization", "α x̂ + σ ε̂ = x_t, in units of σ", 0, largest(off), 1e-6)
    moved = recipe.parameterization.solve(prediction.output + 1, x_t, level)[0] - prediction.x
    off = recipe.parameterization.gain(level) * moved.abs() - 1
    yield Identity("parameterization", "gain = change of the output with x̂, relative", 0, largest(off), 1e-6)


class _Perturbed(nn.Module):
    """An oracle's output plus a multiple of its input, a constant for a learned variance, and an uncertainty."""

    def __init__(self, model: OracleModel, outputs: int, off: float) -> None:
        super().__init__()
        self.model, self.outputs, self.off = model, outputs, off

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        output = self.model(x, noise_label) + self.off * x
        return torch.cat([output, torch.full_like(output, 0.1)], 1) if self.outputs > 1 else output

    def log_variance(self, noise_label: Tensor) -> Tensor:
        """Another number for each level, as the optimum does not depend on it."""
        return 0.1 * noise_label


def _objective(recipe: Recipe, timesteps: int) -> Identity:
    # without the first step, whose term is not quadratic in the error
    t = torch.linspace(0.1, 0.9, 17, dtype=torch.float64).mul(timesteps).ceil().clamp(min=2).div(timesteps)
    x, noise = (v.expand(len(t), -1, -1, -1) for v in (exact_images(), exact_noise()))
    model = OracleModel(gaussian(STD), recipe.schedule, recipe.parameterization)

    def loss(off: float) -> Tensor:
        off_model = _Perturbed(model, recipe.variance.outputs, off)
        denoiser = Denoiser(off_model, recipe.schedule, recipe.parameterization, recipe.variance, LogSNR())
        terms: dict[str, Tensor] = recipe.objective(denoiser, x, t, noise)
        return terms["loss"]

    above, least, below = loss(1e-2), loss(0.0), loss(-1e-2)
    rise = above + below - 2 * least
    off = largest((above - below) / rise) if bool((rise > 0).all()) else math.inf
    return Identity("objective", "slope over curvature of the loss at the optimal denoiser", 0, off, 1e-4)


def _times(times: TimeSampler, schedule: Schedule, timesteps: int) -> Iterator[Identity]:
    total = 2**16
    t, weight = times.sample(BatchSlot(generator(0, "verify"), 0, total, total), schedule)
    yield Identity("times", "draws outside (0, 1]", 0, count(~((t > 0) & (t <= 1))), 0)
    grid = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    density = times.density(grid, schedule)
    yield Identity("times", "∫ density dt", 1, float(density.mean()), 1e-3)
    seen, expected = float((weight * t).mean()), float((density * grid).mean())
    # five standard errors, and half a step where the times lie on a grid
    tolerance = 5 * float((weight * t).std()) / math.sqrt(total) + 1 / timesteps
    yield Identity("times", "mean of t over weighted draws", expected, seen, tolerance)
