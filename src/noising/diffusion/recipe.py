"""A recipe: the parts of the theory that a config chooses, and the combinations that cannot work.

Conflicts are found before anything costly, such as data or a network, is built.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.noise_labels import NoiseLabel
from noising.diffusion.objectives import Objective
from noising.diffusion.parameterizations import Parameterization
from noising.diffusion.schedules import Schedule
from noising.diffusion.times import BatchSlot, TimeSampler
from noising.diffusion.variances import ReverseVariance
from noising.errors import config_errors

_MAX_LOG_SNR = 200.0  # upper limit of |λ|, far beyond those at which α² or σ² is 0 in float32
_WAYS_OUT = {
    "α": "parameterization=velocity, flow or clean_image",
    "σ": "objective.sigma_floor=0.05, or parameterization=velocity or flow",
}
"""The advice that avoids a weight that is infinite, or too large beside others, where α or σ is (nearly) 0."""
_DRAWS = 2**14  # number of times by which the spread of a weight is judged
_MAX_SPREAD = 1000.0  # the largest weight over the median, above which `uneven` has a message


class Recipe(NamedTuple):
    """The choices that define a diffusion model, but for its network and data."""

    schedule: Schedule
    parameterization: Parameterization
    noise_label: NoiseLabel
    variance: ReverseVariance
    times: TimeSampler
    objective: Objective
    decoder: Decoder

    def denoiser(self, model: nn.Module) -> Denoiser:
        """The denoiser of a network with this recipe."""
        return Denoiser(model, self.schedule, self.parameterization, self.variance, self.noise_label)


def conflicts(recipe: Recipe) -> Iterator[str]:
    """Messages, one per conflict, that name the options and a way out."""
    schedule, objective, variance = recipe.schedule, recipe.objective, recipe.variance
    if (fault := _malformed(recipe)) is not None:
        yield fault
        return
    end = schedule(torch.ones(1, dtype=torch.float64))
    if not end.alpha.any():
        where = f"at t = 1, where {_name(schedule)} leaves no signal (zero terminal SNR)"
        if not recipe.parameterization.gain(end).all():
            yield (
                f"parameterization: {_name(recipe.parameterization)} does not determine the clean image {where}; "
                "use velocity, flow, clean_image or karras"
            )
        if not recipe.noise_label(end).isfinite().all():
            yield f"noise_label: {_name(recipe.noise_label)} is infinite {where}; use scaled_time or scaled_log_snr"
    if any(parameter.requires_grad for parameter in schedule.parameters()) and not objective.trains_schedule:
        yield (
            f"schedule: {_name(schedule)} is learned, but objective {_name(objective)} cannot train it: it would make "
            "the task easy, not the model good; use objective=continuous_bound or a fixed schedule"
        )
    if schedule.learns_ends and recipe.decoder.uses_network:
        yield (
            f"decoder: {_name(schedule)} learns its ends from the decoder's term also, and {_name(recipe.decoder)} "
            "needs the network for it; use decoder=softmax_gaussian or schedule=learned_log_snr, whose ends are fixed"
        )
    if variance.outputs > 1 and not objective.trains_variance:
        yield (
            f"variance: {_name(variance)} is learned, but objective {_name(objective)} never trains it; "
            "use objective=hybrid or variational_bound, or a fixed variance"
        )
    if variance.fitted and objective.trains_variance:
        yield (
            f"variance: {_name(variance)} is fitted to a trained network, but objective {_name(objective)} needs a "
            "variance during training; use variance=learned_range or fixed_small"
        )
    if objective.trains_only_variance and variance.outputs == 1:
        yield (
            f"objective: {_name(objective)} adds a bound that trains only the variance, but variance "
            f"{_name(variance)} has nothing to train; use objective=regression or variance=learned_range"
        )
    inside = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    density = recipe.times.density(inside, schedule)
    if not density.isfinite().all():
        yield (
            f"times: {_name(recipe.times)} draws levels that {_name(schedule)} does not have, so that the density of "
            "its times is not finite; change the options of times"
        )
        return
    if objective.over_uniform_times and not torch.allclose(density, torch.ones_like(density)):
        yield (
            f"times: {_name(recipe.times)} changes the weights of the levels, but objective {_name(objective)} is a "
            "bound over uniform times only; use times=low_discrepancy, grid or loss_aware"
        )
    level = schedule(inside)
    try:
        with config_errors("weighting"):
            weight = objective.weight(schedule, level, recipe.parameterization.gain(level)).detach()
    except TypeError as error:
        yield f"weighting: the call with (level, gain) failed: {error}"
        return
    # nan at every level: not a weighted squared error at all
    if not weight.isnan().all() and not (weight.isfinite() & (weight >= 0)).all():
        worst = float(weight[~(weight.isfinite() & (weight >= 0))][0])
        yield f"weighting: some level has the weight {worst:g}; a weight must be finite and not negative"
        return
    if (fault := _infinite(recipe)) is not None:
        yield fault


def _infinite(recipe: Recipe) -> str | None:
    """A message on a comparison whose weight is infinite, at a time that is drawn or on average over the times."""
    schedule, objective = recipe.schedule, recipe.objective
    if objective.compared is None:
        return None
    earliest = _earliest(recipe)
    level = schedule(torch.tensor([earliest, 1000 * earliest, 1.0], dtype=torch.float64).clamp(max=1))
    t = level.t.flatten()
    weight = objective.weight(schedule, level, recipe.parameterization.gain(level)).detach().flatten()
    if not weight.isfinite().all():
        at = int((~weight.isfinite()).nonzero()[0])
        end = "α" if float(level.log_snr.flatten()[at]) < 0 else "σ"
        if weight[at].isnan():  # a weight on x̂ over a gain of 0
            return f"{_comparison(recipe)}, the weight at t = {t[at]:.3g} is 0/0, as {end} is 0; use weighting=uniform"
        return f"{_comparison(recipe)}, the weight at t = {t[at]:.3g} is infinite, as {end} is 0; use {_WAYS_OUT[end]}"
    # where t is continuous and σ falls to 0 as t does, 1/σ² of a straight line has no mean: it grows faster than 1/t
    share = (weight * recipe.times.density(t, schedule) * t)[:2]
    if earliest < 1e-6 and bool(share[0] > 10 * share[1]):
        return (
            f"{_comparison(recipe)}, the mean weight is infinite, by the levels near t = 0, where σ is 0; use "
            f"{_WAYS_OUT['σ']}, or times=grid"
        )
    return None


def uneven(recipe: Recipe) -> str | None:
    """A message on a comparison that leaves most of the loss to a few levels, by the times as they are drawn."""
    schedule, objective = recipe.schedule, recipe.objective
    if objective.compared is None:
        return None
    t, _ = recipe.times.sample(BatchSlot(np.random.default_rng(0), 0, _DRAWS, _DRAWS), schedule)
    level = schedule(t.clamp(min=_earliest(recipe)))
    weight = objective.weight(schedule, level, recipe.parameterization.gain(level)).detach().flatten()
    spread = float(weight.max() / weight.median())
    if not spread > _MAX_SPREAD:
        return None
    log_snr = float(level.log_snr.flatten()[int(weight.argmax())])
    return (
        f"{_comparison(recipe)}, the largest weight (at λ = {log_snr:.1f}) is {spread:,.0f} times the median: clipping "
        f"turns such a step into a lost one; tune the learning rate, or use {_WAYS_OUT['α' if log_snr < 0 else 'σ']}"
    )


def _earliest(recipe: Recipe) -> float:
    return max(recipe.times.earliest, recipe.objective.earliest)


def _comparison(recipe: Recipe) -> str:
    predicted, compared = _name(recipe.parameterization), _name(recipe.objective.compared)
    return f"objective.compared: for {predicted} compared as {compared}"


def rising(schedule: Schedule) -> str | None:
    """A message on a schedule whose λ rises somewhere, with which nothing can be trained; None if it falls."""
    t = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    rises = schedule.log_snr(t).detach().diff() > 0
    if not bool(rises.any()):
        return None
    where = float(t[int(rises.nonzero()[0])])
    return f"schedule: λ(t) of {_name(schedule)} rises at t = {where:.3f}: it must fall, from clean to noise"


def _malformed(recipe: Recipe) -> str | None:
    """A message on a user's own schedule or parameterization that makes the other checks impossible."""
    schedule, parameterization = recipe.schedule, recipe.parameterization
    t = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    how = "compute it from t with torch's own functions, in t's float64"
    try:
        log_snr = schedule.log_snr(t).detach()
        schedule.log_snr_rate(t)
        level = schedule(t)
    except (RuntimeError, TypeError, AttributeError) as error:
        return f"schedule: λ(t) of {_name(schedule)} cannot be computed or differentiated: {how} ({error})"
    if log_snr.shape != t.shape or log_snr.dtype != t.dtype:
        return (
            f"schedule: for t of shape {tuple(t.shape)} {_name(schedule)} returns λ of shape {tuple(log_snr.shape)} in "
            f"{str(log_snr.dtype).removeprefix('torch.')}: {how}"
        )
    if not log_snr.isfinite().all() or float(log_snr.abs().max()) > _MAX_LOG_SNR:
        return (
            f"schedule: λ(t) of {_name(schedule)} goes from {float(log_snr[0]):.3g} to {float(log_snr[-1]):.3g} "
            f"between t = 0.001 and 0.999: it must stay within {_MAX_LOG_SNR:g} of 0"
        )
    determinant = parameterization.determinant(level).expand_as(level.alpha).flatten()
    singular = (determinant.abs() < 1e-12) | (determinant.sign() != determinant.sign()[0])
    if bool(singular.any()):
        where = float(level.log_snr.flatten()[int(singular.nonzero()[0])])
        return (
            f"parameterization: near λ = {where:.1f} {_name(parameterization)} mixes x and ε as x_t does, so that its "
            "output does not determine x̂: a σ − b α must keep one sign, or the schedule must end before this λ"
        )
    return None


def _name(part: object) -> str:
    return type(part).__name__
