"""Training objectives: functions of a denoiser and (x, t, ε), with one loss per image.

They are weighted squared errors of the network's output, averaged over times t, or terms of the variational bound.
Times and noise are drawn outside, so that a loss can be compared with another implementation number by number.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser, Prediction
from noising.diffusion.gaussian import Gaussian
from noising.diffusion.levels import NoiseLevel, cast_to
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.likelihood.terms import prior_at, step_terms
from noising.diffusion.networks import log_variance_of
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.transitions import Chain
from noising.diffusion.weightings import uniform
from noising.errors import require

LAST_TIME = 1 - 2.0**-40  # latest time where dλ/dt is used: at t = 1 it is infinite if a schedule leaves no signal
Terms = dict[str, Tensor]  # named values of an objective, each (B,); "loss" is the one to minimize
Weighting = Callable[[NoiseLevel, Tensor], Tensor]
"""(level, gain of the parameterization) -> weight of the output's squared error, as in weightings.py."""


class Objective(nn.Module, ABC):
    """A training objective, and whether it trains a learned variance, schedule or uncertainty.

    trains_only_variance: one of its terms trains the variance alone, and so has no effect on a fixed one;
    trains_uncertainty: it requires a network with a ``log_variance``, as `log_variance_of` finds it;
    over_uniform_times: it requires times that are uniform, by their draws or by their weights;
    compared: what its squared error is taken of, None for what the network predicts; earliest: its earliest time.
    """

    trains_variance: bool = False
    trains_only_variance: bool = False
    trains_schedule: bool = False
    trains_uncertainty: bool = False
    over_uniform_times: bool = False
    compared: Parameterization | None = None
    earliest: float = 0.0

    @abstractmethod
    def forward(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None) -> Terms:
        """The terms for x, noise (B, C, H, W) and t (B,) in (0, 1], float64 on the host; condition: the denoiser's."""

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        """The weight of the output's squared error at a level, of the level's shape; gain: the parameterization's.

        nan where the objective is not a weighted squared error.
        """
        return torch.full_like(gain, torch.nan)


def output_error(denoiser: Denoiser, x: Tensor, level: NoiseLevel, noise: Tensor, **condition: Tensor | None) -> Tensor:
    """‖a x + b ε − output‖²/D, the mean squared error in the network's own output space: (B,)."""
    output, _ = denoiser.output(level.perturb(x, noise), level, **condition)  # x̂ and ε̂ are not needed
    return (output - denoiser.parameterization.target(x, noise, level)).square().flatten(1).mean(1)


def require_losses(
    objective: Objective, denoiser: Denoiser, shape: tuple[int, ...], classes: int, augmentation_labels: int = 0
) -> None:
    """Evaluate an objective for two grey images of a shape (C, H, W), as training does.

    Raises ValueError unless it gives a mapping with a loss (B,) that has a gradient, and whatever the objective raises.
    """
    x, t = torch.zeros(2, *shape), torch.tensor([0.3, 0.7], dtype=torch.float64)
    condition = {"class_label": torch.zeros(2, dtype=torch.long) if classes else None}
    if augmentation_labels:
        condition["augmentation"] = torch.zeros(2, augmentation_labels)
    terms = objective(denoiser, x, t, torch.ones_like(x), **condition)
    require(isinstance(terms, Mapping), f"returns a {type(terms).__name__}, but a dict with 'loss' is expected")
    require("loss" in terms, f"returns {', '.join(map(repr, terms)) or 'nothing'}, but 'loss' is expected")
    found = tuple(getattr(terms["loss"], "shape", ("no tensor",)))
    require(found == (2,), f"returns a loss of shape {found} for two images, but (2,) is expected: one per image")
    require(terms["loss"].requires_grad, "returns a loss without a gradient")


def in_space_of(
    compared: Parameterization | None, weighting: Weighting = uniform, sigma_floor: float | None = None
) -> Weighting:
    """The weighting by which the output's squared error is that of `compared`, weighted by `weighting`.

    At a given x_t, a network that predicts one mix of x and ε has an estimate of every other, and their errors differ
    by a factor: ‖target_b − output_b‖² = (gain_b/gain_a)² ‖target_a − output_a‖². So what is predicted (a) and what is
    compared (b) are two choices. sigma_floor: the least σ that gain_b is divided by, for a comparison of x̂ with the
    velocity or the noise, whose weight is infinite where σ = 0. Li & He, "Back to Basics: Let Denoising Generative
    Models Denoise" (2025), table 1; their floor is 0.05. https://arxiv.org/abs/2511.13720
    """
    if compared is None:
        require(sigma_floor is None, "sigma_floor is of a comparison: add parameterization@objective.compared=velocity")
        return weighting
    require(sigma_floor is None or sigma_floor > 0, f"sigma_floor must be positive, got {sigma_floor}")
    return partial(_compared_weight, compared, weighting, sigma_floor)


def _compared_weight(
    compared: Parameterization, weighting: Weighting, sigma_floor: float | None, level: NoiseLevel, gain: Tensor
) -> Tensor:
    gain_b = compared.gain(level)
    if sigma_floor is not None:
        _, b = compared.mix(level)  # 0 for x, whose error is divided by no σ
        gain_b = torch.where(b == 0, gain_b, gain_b * level.sigma / level.sigma.clamp(min=sigma_floor))
    return weighting(level, gain_b) * (gain_b / gain) ** 2


class WeightedLoss(Objective, ABC):
    """`weight` times the mean squared error of the network's output, with a weighting to choose."""

    last_time: float = 1.0  # the upper limit that t is clamped to

    def __init__(
        self,
        weighting: Weighting = uniform,
        compared: Parameterization | None = None,
        sigma_floor: float | None = None,
    ) -> None:
        """compared, sigma_floor: the space of the squared error, as in `in_space_of`; None: that of the output."""
        super().__init__()
        self.compared = compared
        self.weighting = in_space_of(compared, weighting, sigma_floor)

    def forward(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None) -> Terms:
        level = denoiser.schedule(t.clamp(max=self.last_time))
        error = output_error(denoiser, x, level, noise, **condition)
        weight = self.weight(denoiser.schedule, level, denoiser.parameterization.gain(level))
        return {"loss": cast_to(weight.flatten(), x) * error, "mse": error}


class Regression(WeightedLoss):
    """w ‖a x + b ε − output‖²/D, averaged over the times.

    With the uniform weighting this is the loss of DDPM (ε), of v-prediction, of EDM and of rectified flow, each with
    its parameterization; with `compared`, the same loss for a network that predicts another mix of x and ε. Ho et al.
    (2020), equation 14.
    """

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        return self.weighting(level, gain)


class UncertaintyWeighted(Regression):
    """The regression of an image divided by exp(u), plus u: every noise level comes to count the same.

    u is a function of the noise level that the network learns beside its output (``model.log_variance``), and is least
    where exp(u) is the mean weighted error at that level. So the sum over levels is of errors relative to what is
    expected there, whatever the weighting. `weight` is without exp(u).

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), equations 14 to 16.
    https://arxiv.org/abs/2312.02696
    """

    trains_uncertainty = True

    def forward(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None) -> Terms:
        log_variance = log_variance_of(denoiser.model)
        if log_variance is None:
            raise ValueError(
                f"UncertaintyWeighted needs a network with log_variance, not {type(denoiser.model).__name__}"
            )
        terms = super().forward(denoiser, x, t, noise, **condition)
        label = denoiser.noise_label(denoiser.schedule(t)).flatten()
        u = log_variance(label.to(x.device, x.dtype, non_blocking=True))  # (B,)
        return {**terms, "loss": terms["loss"] * torch.exp(-u) + u, "log_variance": u}


class WeightedBound(WeightedLoss):
    """½ ∫ w(λ) ‖ε − ε̂‖²/D dλ with w a function of λ alone: the schedule affects the variance of the estimate only.

    It is −½ dλ/dt w ‖ε − ε̂‖²/D averaged over uniform t. With the SNR weighting (1 on ε̂) it is the continuous bound;
    with one that falls with λ, the bound for noised data. Kingma & Gao, "Understanding Diffusion Objectives as the
    ELBO with Simple Data Augmentation" (2023), equation 8. https://arxiv.org/abs/2303.00848
    """

    over_uniform_times = True
    last_time = LAST_TIME

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        return -0.5 * schedule.log_snr_rate(level.t.clamp(max=LAST_TIME)) * self.weighting(level, gain)


class ContinuousBound(Objective):
    """−½ dλ/dt ‖ε − ε̂‖²/D in bits/dim: the limit of the bound's sum over steps for T -> ∞.

    Its average over uniform t does not depend on the schedule between its ends, so a learned schedule is trained to
    minimize the variance of the estimate instead: it gets the gradient of the squared loss, which is twice the loss
    times the loss's gradient, image by image, in the same backward pass. Kingma et al., "Variational Diffusion Models"
    (2021), equation 17 and appendix I.2. https://arxiv.org/abs/2107.00630

    A schedule whose ends are learned is trained by the whole bound: the prior's and the decoder's term are added, and
    its gradient is that of the bound.
    """

    trains_schedule = True
    over_uniform_times = True

    def __init__(self, decoder: Decoder | None = None) -> None:
        """decoder: for schedules whose ends are learned; it must not use the network."""
        super().__init__()
        self.decoder = decoder

    def forward(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None) -> Terms:
        level = denoiser.schedule(t.clamp(max=LAST_TIME))
        rate = denoiser.schedule.log_snr_rate(level.t)
        error = output_error(denoiser, x, level, noise, **condition)
        loss = cast_to(self._weight(rate, level, denoiser.parameterization.gain(level)).flatten(), x) * error
        if denoiser.schedule.learns_ends:
            return {"loss": loss + self._at_the_ends(denoiser.schedule, x, noise), "mse": error}
        for curve in (level.log_snr, rate):
            if curve.requires_grad:
                twice = 2 * loss.detach().reshape_as(curve)
                curve.register_hook(lambda gradient, twice=twice: gradient * twice.to(gradient))
        return {"loss": loss, "mse": error}

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        return self._weight(schedule.log_snr_rate(level.t.clamp(max=LAST_TIME)), level, gain)

    def _at_the_ends(self, schedule: Schedule, x: Tensor, noise: Tensor) -> Tensor:
        """The prior's and the decoder's term in bits/dim, (B,): with gradients in the ends alone.

        The decoder's depends on one learned number, λ(0), and so its derivative is found in forward mode: a gradient
        would store every grey level of every pixel. The noise is the one of the other times, which no mean notices.
        """
        decoder = self.decoder
        if decoder is None or decoder.uses_network:
            raise ValueError("a schedule that learns its ends needs a decoder without a network: SoftmaxGaussian")
        start, end = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        prior = prior_at(schedule(end), 1.0, x)
        log_snr = schedule.log_snr(start)

        def decoded(log_snr: Tensor) -> Tensor:
            level = NoiseLevel(start, log_snr, *schedule.scales(log_snr))
            unused = Gaussian(x, log_snr)
            return -decoder.log_prob(x, unused, level.perturb(x, noise), level)

        at, apart = log_snr.detach(), log_snr - log_snr.detach()
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's own, at its first use
            value, slope = torch.func.jvp(decoded, (at,), (torch.ones_like(at),))[:2]
        nats: Tensor = prior + value + slope * apart
        return nats / (x[0].numel() * math.log(2))

    def _weight(self, rate: Tensor, level: NoiseLevel, gain: Tensor) -> Tensor:
        return -0.5 / math.log(2) * rate * level.log_snr.exp() / gain**2


class ChainObjective(Objective, ABC):
    """An objective on the steps of a chain: a time t stands for its step i, (i − 1)/T < t ≤ i/T."""

    trains_variance = True
    over_uniform_times = True

    def __init__(self, timesteps: int, decoder: Decoder) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.earliest = 1 / timesteps
        self.decoder = decoder
        self._made: Chain | None = None

    def _chain(self, schedule: Schedule) -> Chain:
        if self._made is None or self._made.schedule is not schedule:
            self._made = Chain.uniform(schedule, self.timesteps)
        return self._made

    def _predict(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None
    ) -> tuple[Tensor, NoiseLevel, Tensor, Prediction]:
        """The steps 1..T of times t, (B,) on the host, their level, x_t and the denoiser's prediction from it."""
        # a time on the grid may lie a rounding above it
        steps = (t.double().cpu() * self.timesteps - 1e-6).ceil().long().clamp(1, self.timesteps)
        level = self._chain(denoiser.schedule).level(steps)
        x_t = level.perturb(x, noise)
        return steps, level, x_t, denoiser.at(x_t, level, **condition)  # type: ignore[arg-type]

    def _bound(self, denoiser: Denoiser, x: Tensor, x_t: Tensor, steps: Tensor, prediction: Prediction) -> Tensor:
        """T L_t in bits/dim, (B,): averaged over uniform steps, the bound without the prior term."""
        terms = step_terms(denoiser, self._chain(denoiser.schedule), x, x_t, steps, prediction, self.decoder)
        return terms * (self.timesteps / (x[0].numel() * math.log(2)))


class VariationalBound(ChainObjective):
    """T L_t in bits/dim, L_0 at the first step: an unbiased estimate of the bound without the constant prior term.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 5. Nichol & Dhariwal, "Improved DDPM" (2021),
    section 3.3, importance-sample the times (`LossAware`), since uniform times make it too noisy to train.
    """

    def forward(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None) -> Terms:
        steps, _, x_t, prediction = self._predict(denoiser, x, t, noise, **condition)
        return {"loss": self._bound(denoiser, x, x_t, steps, prediction)}

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        """The weight with the fixed small variance, T (α_s²/σ_s² − α_t²/σ_t²)/2 on x̂ in bits/dim; step 1 as step 2.

        Kingma et al., "Variational Diffusion Models" (2021), equation 13.
        """
        earlier = schedule((level.t.flatten() - 1 / self.timesteps).clamp(min=1 / self.timesteps))
        later = schedule(level.t.flatten().clamp(min=2 / self.timesteps))
        fall = earlier.log_snr.exp() - later.log_snr.exp()
        weight: Tensor = self.timesteps / (2 * math.log(2)) * fall.reshape_as(gain) / gain**2
        return weight


class Hybrid(ChainObjective):
    """The weighted regression plus bound_weight · T L_t in bits/dim, which trains the variance alone.

    The second term has no gradient in the mean. The default 0.001 is independent of T; improved DDPM's code without
    its rescaling uses 1/T. Nichol & Dhariwal, "Improved DDPM" (2021), equation 16. https://arxiv.org/abs/2102.09672
    """

    trains_only_variance = True

    def __init__(
        self,
        weighting: Weighting,
        timesteps: int,
        decoder: Decoder,
        bound_weight: float = 0.001,
        compared: Parameterization | None = None,
        sigma_floor: float | None = None,
    ) -> None:
        """compared, sigma_floor: the space of the regression's squared error, as in `in_space_of`."""
        super().__init__(timesteps, decoder)
        require(bound_weight > 0, f"bound_weight must be positive, got {bound_weight}")
        self.compared = compared
        self.weighting = in_space_of(compared, weighting, sigma_floor)
        self.bound_weight = bound_weight

    def forward(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Tensor, **condition: Tensor | None) -> Terms:
        steps, level, x_t, prediction = self._predict(denoiser, x, t, noise, **condition)
        error = (prediction.output - denoiser.parameterization.target(x, noise, level)).square().flatten(1).mean(1)
        weight = cast_to(self.weighting(level, denoiser.parameterization.gain(level)).flatten(), x)
        bound = self._bound(denoiser, x, x_t, steps, prediction._replace(x=prediction.x.detach()))
        return {"loss": weight * error + self.bound_weight * bound, "mse": error, "bound": bound}

    def weight(self, schedule: Schedule, level: NoiseLevel, gain: Tensor) -> Tensor:
        """The regression's weight: the bound does not train the mean."""
        return self.weighting(level, gain)
