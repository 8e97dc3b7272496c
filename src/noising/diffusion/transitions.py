"""A step of the diffusion between times s < t, and the chain of such steps.

All distributions follow from the two levels and c = 1 − e^(λ_t − λ_s):

    forward    q(x_t | x_s)       = N(α_t/α_s x_s,                           c σ_t²)
    posterior  q(x_s | x_t, x)    = N((α_t σ_s²)/(α_s σ_t²) x_t + α_s c x,   c σ_s²)
    reverse    p(x_s | x_t)       = N(the same mean with x̂ for x,            by the reverse variance)

For a variance-preserving schedule on the grid t = i/T these are Ho et al. (2020), equations 2, 6, 7 and 11, with
c σ_t² = β_t. The form through λ is Kingma et al., "Variational Diffusion Models" (2021), appendix A.
https://arxiv.org/abs/2107.00630
"""

from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.gaussian import Gaussian
from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.schedules import Schedule


class Transition(NamedTuple):
    """The step between a later level t and an earlier, cleaner level s; coefficients are float64, of the levels' shape.

    first_log_variance replaces log c σ_s² where s is clean, so that σ_s = 0 and the posterior a point: the second
    step's value, as in the reference implementations of DDPM. It affects bits/dim.
    """

    later: NoiseLevel
    earlier: NoiseLevel
    first_log_variance: Tensor

    @property
    def c(self) -> Tensor:
        """1 − e^(λ_t − λ_s), in (0, 1]."""
        return -torch.expm1(self.later.log_snr - self.earlier.log_snr)

    def forward(self, x_s: Tensor) -> Gaussian:
        """q(x_t | x_s), a forward step. Ho et al. (2020), equation 2."""
        return Gaussian(cast_to(self.later.alpha / self.earlier.alpha, x_s) * x_s, self.large_log_variance)

    @property
    def mean_weights(self) -> tuple[Tensor, Tensor]:
        """Coefficients of x_t and x in the posterior mean. Ho et al. (2020), equation 7."""
        t, s = self.later, self.earlier
        return t.alpha / s.alpha * (s.sigma / t.sigma) ** 2, s.alpha * self.c

    def mean(self, x_t: Tensor, x: Tensor) -> Tensor:
        """The posterior mean from x_t and the clean image or its estimate, all (B, C, H, W)."""
        coef_x_t, coef_x0 = self.mean_weights
        return cast_to(coef_x_t, x_t) * x_t + cast_to(coef_x0, x_t) * x

    @property
    def posterior_variance(self) -> Tensor:
        """c σ_s², the variance of the posterior; 0 where s is clean. Ho et al. (2020), equation 7."""
        return self.c * self.earlier.sigma**2

    @property
    def small_log_variance(self) -> Tensor:
        """log c σ_s²; first_log_variance where s is clean."""
        return torch.where(self.earlier.sigma > 0, self.posterior_variance.log(), self.first_log_variance)

    @property
    def large_log_variance(self) -> Tensor:
        """log c σ_t², of the forward step's variance."""
        return (self.c * self.later.sigma**2).log()

    def posterior(self, x_t: Tensor, x: Tensor) -> Gaussian:
        """q(x_s | x_t, x). Ho et al. (2020), equation 6."""
        return Gaussian(self.mean(x_t, x), self.small_log_variance)


class Chain:
    """A schedule on a grid of times 0 < t_1 < … < t_T: chain[i] is the step t_i -> t_(i−1), with t_0 = 0 clean.

    i counts 1..T as in the literature; an integer gives scalar coefficients, a (B,) tensor of integers one step per
    image. The paper's arrays beta, alpha, alpha_bar and posterior_variance are (T,) float64, index 0 for step 1; for
    geometries that do not preserve variance they are those of the variance-preserving chain with the same λ.
    """

    def __init__(self, schedule: Schedule, times: Tensor) -> None:
        """times: (T,) rising, in (0, 1], or ValueError is raised."""
        times = times.double().cpu()
        if not len(times) or times[0] <= 0 or times[-1] > 1 or not bool((times.diff() > 0).all()):
            raise ValueError("times of a chain must rise within (0, 1]")
        self.schedule = schedule
        zero, infinite = times.new_zeros(1), times.new_full((1,), torch.inf)
        self.times = torch.cat([zero, times])
        clean = (zero, infinite, torch.ones_like(zero), zero)  # a level that the schedule need not reach
        noisy = (field.detach().flatten().cpu() for field in schedule(times))
        self._levels = NoiseLevel(*(torch.cat(fields) for fields in zip(clean, noisy, strict=True)))
        log_snr, variance = self._levels.log_snr, self._levels.sigma[1] ** 2
        # without a second step it is the forward variance of the only one
        second = variance if len(times) == 1 else -torch.expm1(log_snr[2] - log_snr[1]) * variance
        self._first_log_variance = torch.log(second)
        before, after = log_snr[:-1], log_snr[1:]
        self.alpha_bar = torch.sigmoid(after)
        self.alpha = self.alpha_bar / torch.sigmoid(before)
        self.beta = 1 - self.alpha
        self.posterior_variance = self.beta * torch.sigmoid(-before) / torch.sigmoid(-after)  # 1 − ᾱ = sigmoid(−λ)

    @classmethod
    def uniform(cls, schedule: Schedule, timesteps: int) -> "Chain":
        """The chain of T equal steps, t = i/T."""
        return cls(schedule, torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps)

    def __len__(self) -> int:
        return len(self.times) - 1

    def level(self, step: int | Tensor) -> NoiseLevel:
        """The level after `step` forward steps; 0 is the clean image."""
        if isinstance(step, int):
            return NoiseLevel(*(field[step] for field in self._levels))
        step = step.cpu()
        return NoiseLevel(*(field[step].reshape(-1, 1, 1, 1) for field in self._levels))

    @property
    def steps(self) -> Transition:
        """All steps at once, in fields of (T,)."""
        earlier, later = (NoiseLevel(*(field[i] for field in self._levels)) for i in (slice(0, -1), slice(1, None)))
        return Transition(later, earlier, self._first_log_variance)

    def __getitem__(self, step: int | Tensor) -> Transition:
        if isinstance(step, int) and not 1 <= step <= len(self):
            raise IndexError(f"steps of this chain are 1 to {len(self)}, got {step}")
        return Transition(self.level(step), self.level(step - 1), self._first_log_variance)
