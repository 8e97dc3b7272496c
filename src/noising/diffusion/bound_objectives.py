"""Objectives of the chain of T steps: its variational bound, and the mix of that with the simplified loss."""

from __future__ import annotations

import math
from abc import ABC

from torch import Tensor

from noising.diffusion.bound import step_terms
from noising.diffusion.decoders import Decoder
from noising.diffusion.denoiser import Denoiser, Prediction
from noising.diffusion.levels import NoiseLevel, like
from noising.diffusion.objectives import Objective, Weighting
from noising.diffusion.schedules import Schedule
from noising.diffusion.transition import Chain

__all__ = ["ChainObjective", "Hybrid", "VariationalBound"]


class ChainObjective(Objective, ABC):
    """An objective at the steps of a chain: a time t counts for the step i that it lies in, (i − 1)/T < t ≤ i/T."""

    trains_variance = True
    over_uniform_times = True

    def __init__(self, timesteps: int, decoder: Decoder) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.decoder = decoder
        self._made: Chain | None = None

    def _chain(self, schedule: Schedule) -> Chain:
        if self._made is None or self._made.schedule is not schedule:
            self._made = Chain.uniform(schedule, self.timesteps)
        return self._made

    def _steps(self, t: Tensor) -> Tensor:
        """The steps 1..T of times t, each (B,), on the host."""
        # a time on the grid may lie a rounding above it
        return (t.double().cpu() * self.timesteps - 1e-6).ceil().long().clamp(1, self.timesteps)

    def _look(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None
    ) -> tuple[Tensor, NoiseLevel, Tensor, Prediction]:
        """The steps of times t, (B,), their level, x_t and what the denoiser says of it."""
        steps = self._steps(t)
        level = self._chain(denoiser.schedule).level(steps)
        x_t = level.perturb(x, noise)
        return steps, level, x_t, denoiser.at(x_t, level, **condition)  # type: ignore[arg-type]

    def _bound(self, denoiser: Denoiser, x: Tensor, x_t: Tensor, steps: Tensor, prediction: Prediction) -> Tensor:
        """T L_t in bits/dim, (B,): over steps drawn evenly, on average the bound but for the prior's term."""
        chain = self._chain(denoiser.schedule)
        terms = step_terms(denoiser, chain, x, x_t, steps, prediction, self.decoder)
        return terms * (self.timesteps / (x[0].numel() * math.log(2)))


class VariationalBound(ChainObjective):
    """T L_t in bits/dim, L_0 at the first step: an unbiased estimate of the bound, without the prior's constant.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 5; Nichol & Dhariwal, "Improved DDPM" (2021),
    section 3.3, draw the times by their losses (`LossAware`) to make it steady enough to train.
    """

    def forward(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None
    ) -> dict[str, Tensor]:
        steps, _, x_t, prediction = self._look(denoiser, x, t, noise, **condition)
        return {"loss": self._bound(denoiser, x, x_t, steps, prediction)}

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        """That of the fixed small variance, T (α_s²/σ_s² − α_t²/σ_t²)/2 on x̂ in bits/dim; at step 1 as at step 2.

        Kingma et al., "Variational Diffusion Models" (2021), equation 13.
        """
        earlier = schedule((level.t.flatten() - 1 / self.timesteps).clamp(min=1 / self.timesteps))
        later = schedule(level.t.flatten().clamp(min=2 / self.timesteps))
        fall = earlier.log_snr.exp() - later.log_snr.exp()
        weight: Tensor = self.timesteps / (2 * math.log(2)) * fall.reshape_as(gain) / gain**2
        return weight


class Hybrid(ChainObjective):
    """The weighted regression, plus bound_weight times T L_t in bits/dim, which trains the variance alone.

    The mean is held fixed in the second term. At 0.001 it weighs the same for every T; improved DDPM's code without
    its rescaling is 1/T. Nichol & Dhariwal, "Improved DDPM" (2021), equation 16. https://arxiv.org/abs/2102.09672
    """

    trains_only_variance = True

    def __init__(self, weighting: Weighting, timesteps: int, decoder: Decoder, bound_weight: float = 0.001) -> None:
        super().__init__(timesteps, decoder)
        if bound_weight <= 0:
            raise ValueError(f"bound_weight must be positive, got {bound_weight}")
        self.weighting = weighting
        self.bound_weight = bound_weight

    def forward(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None
    ) -> dict[str, Tensor]:
        steps, level, x_t, prediction = self._look(denoiser, x, t, noise, **condition)
        error = (prediction.output - denoiser.parameterization.target(x, noise, level)).square().flatten(1).mean(1)
        weight = like(self.weighting(level, denoiser.parameterization.gain(level)).flatten(), x)
        held = prediction._replace(x=prediction.x.detach())
        bound = self._bound(denoiser, x, x_t, steps, held)
        return {"loss": weight * error + self.bound_weight * bound, "mse": error, "bound": bound}

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        """The regression's: the bound's term does not train the mean."""
        return self.weighting(level, gain)
