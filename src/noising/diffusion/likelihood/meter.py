"""The bound from its draws: mean and standard errors of the bound and its terms, and the bits by step.

Two errors are kept apart: the Monte Carlo error, over times and noise with these very images, and the error over images
as draws from a population. The first comes from the spread within images, or of replicates where images share draws.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from noising.diffusion.likelihood.estimators import (
    BoundDraws,
    BoundEstimator,
    BoundPlan,
    evaluate_draws,
    log_strata,
)
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.pilot import ImageSpread
from noising.diffusion.likelihood.sums import SumsOverRanks
from noising.diffusion.likelihood.terms import BoundTerms

BINS = 120  # upper limit of the bins of steps in a curve
MIN_DRAWS = 64  # least number of draws in a bin of a curve; smaller neighbours are merged
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Total number of evaluations -> context manager that yields advance(number of further ones)."""


class BoundCurve(NamedTuple):
    """The bound by step, averaged in K bins of steps; float64.

    edges: (K + 1,), bin k holds the steps edges[k] .. edges[k + 1] − 1, the first is step 1 alone, the decoder's.
    (K,) each: mean bits/dim of one step in the bin, its standard error over noise and images, and E‖x − x̂‖²/D there.
    """

    edges: Tensor
    bits: Tensor
    stderr: Tensor
    error: Tensor


class BoundEstimate:
    """The sums of all images, over batches and ranks, with the bound that they give.

    edges: (K + 1,) int64, bin k holds the steps edges[k] .. edges[k + 1] − 1. Float64 sums, on the host, in bits/dim:
    image_moments: (11,) over images, of 1, prior, floor, bound (the mean of R replicates), bound², the variances of the
    means of the steps, the decoder and both, and these variances squared; replicate_sums: (R, 2) over images, of the
    steps and the decoder; bin_sums: (4, K) over the draws in each bin, of 1, bits, bits² and ‖x − x̂‖²/D.
    """

    def __init__(
        self,
        plan: BoundPlan,
        timesteps: int,
        edges: Tensor,
        image_moments: Tensor,
        replicate_sums: Tensor,
        bin_sums: Tensor,
    ) -> None:
        """Raises ValueError if there is no image."""
        self.plan = plan
        self.timesteps = timesteps
        self._edges, self._images, self._replicates, self._bins = edges, image_moments, replicate_sums, bin_sums
        if not self.images:
            raise ValueError("the bound has seen no image")

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self._images[0])

    def numbers(self) -> dict[str, float]:
        """The bound and its terms prior, steps and decoder, in bits/dim; decoder_floor is the least possible decoder.

        *_mc_se are Monte Carlo standard errors, bound_image_se the standard error over images. bound_low and bound_high
        are the 95% interval for these images, bound_population_low and _high for the population. Undefined errors are
        nan, as of a single image, and where the spread of the images is lost in the Monte Carlo error.
        """
        n, prior, floor = self._images[:3].tolist()
        steps, decoder = (self._replicates.mean(0) / n).tolist()
        bound = prior / n + steps + decoder
        (steps_error, decoder_error, mc), images = self._monte_carlo(), self._over_images()
        both = mc.plus(images)
        return {
            "bound": bound,
            "bound_mc_se": mc.stderr,
            "bound_image_se": images.stderr,
            "bound_low": bound - mc.half_width,
            "bound_high": bound + mc.half_width,
            "bound_population_low": bound - both.half_width,
            "bound_population_high": bound + both.half_width,
            "prior": prior / n,
            "steps": steps,
            "steps_mc_se": steps_error.stderr,
            "decoder": decoder,
            "decoder_mc_se": decoder_error.stderr,
            "decoder_floor": floor / n,
        }

    def __repr__(self) -> str:
        found = self.numbers()
        errors = (
            f"± {found['bound_mc_se']:.4f} (times and noise) ± {found['bound_image_se']:.4f} ({self.images} images)"
        )
        return f"{found['bound']:.4f} bits/dim {errors}"

    def _monte_carlo(self) -> list["_Error"]:
        """Monte Carlo errors of the steps, the decoder and their sum."""
        replicates = self.plan.replicates
        if self.plan.noise is not None:
            return [_Error(math.sqrt(noise.value), noise.freedom) for noise in self.plan.noise]
        if replicates == 1:
            return [_Error(math.nan, 1)] * 3
        n = self._images[0]
        if self.plan.by_image:
            sums = zip(self._images[5:8].tolist(), self._images[8:11].tolist(), strict=True)
            return [_error_of_sum(float(n), variance, squares, replicates - 1) for variance, squares in sums]
        means = torch.cat([self._replicates, self._replicates.sum(1, keepdim=True)], 1) / n
        return [_Error(math.sqrt(float(variance) / replicates), replicates - 1) for variance in means.var(0)]

    def _over_images(self) -> "_Error":
        """Standard error over images; from the draws or the pilot, whichever is more certain."""
        n, _, _, total, square, _, _, within = self._images[:8].tolist()
        spreads = [] if self.plan.image_spread is None else [self.plan.image_spread]
        if self.plan.even and n > 1:
            raw = max(square / n - (total / n) ** 2, 0.0) * n / (n - 1)
            noise = within / n if math.isfinite(within) else 0.0
            noise = noise if self.plan.noise is None else self.plan.noise[2].value * n
            spreads.append(ImageSpread(max(raw - noise, 0.0), raw, int(n) - 1))
        if not spreads or n == 1:
            return _Error(math.nan, 1)
        spread = min(spreads, key=lambda spread: spread.raw**2 / spread.freedom)  # that is half the variance of raw
        if spread.variance == 0 < spread.raw:
            return _Error(math.nan, 1)  # lost in the Monte Carlo error, and not known to be 0
        return _Error(math.sqrt(spread.variance / n), spread.freedom)

    def curve(self) -> BoundCurve:
        """The bound by step, in bins of at least MIN_DRAWS draws each where possible."""
        weight = float(self._images[0]) * self.plan.replicates
        edges, bins = [1, 2], [self._bins[:, 0]]
        pending = torch.zeros(4, dtype=torch.float64)
        for right, sums in zip(self._edges[2:].tolist(), self._bins[:, 1:].T, strict=True):
            pending = pending + sums
            if pending[0] >= MIN_DRAWS:
                edges, bins, pending = [*edges, right], [*bins, pending], torch.zeros_like(pending)
        if edges[-1] <= self.timesteps:  # the remaining draws go to the last bin
            if len(bins) > 1 and pending[0] < MIN_DRAWS:
                edges[-1], bins[-1] = self.timesteps + 1, bins[-1] + pending
            else:
                edges, bins = [*edges, self.timesteps + 1], [*bins, pending]
        count, total, square, error = torch.stack(bins, 1)
        widths = torch.tensor(edges).diff()
        # draws that might have fallen into a bin: their number there is itself random, unless the plan fixes it
        tried = count if self.plan.strata is None else weight * _touched(torch.tensor(edges), self.plan.strata)
        spread = (square - total**2 / tried.clamp(min=1)).clamp(min=0) * tried / (tried - 1).clamp(min=1)
        return BoundCurve(torch.tensor(edges), total / weight / widths, spread.sqrt() / weight / widths, error / count)


class BoundMeter(SumsOverRanks):
    """Accumulates the draws of images on the host as sums, and computes the bound of the images of all ranks."""

    image_moments: Tensor
    replicate_sums: Tensor
    bin_sums: Tensor

    def __init__(self, plan: BoundPlan, timesteps: int) -> None:
        super().__init__()
        self.plan = plan
        self.timesteps = timesteps
        self._edges = log_strata(timesteps, BINS)
        self.add_sums("image_moments", 11)
        self.add_sums("replicate_sums", plan.replicates, 2)
        self.add_sums("bin_sums", 4, len(self._edges) - 1)

    def update(self, draws: BoundDraws) -> None:
        """Add the draws of some images."""
        nats = draws.dims * math.log(2)
        row, replicate, step, weight = draws.places
        bits = draws.nats / nats * weight
        prior, floor = draws.prior / nats, draws.floor / nats
        table = torch.zeros(len(prior), self.plan.replicates, 2, dtype=torch.float64)  # steps, decoder
        table.index_put_((row, replicate, (step == 1).long()), bits, accumulate=True)
        self.replicate_sums += table.sum(0)
        which = torch.searchsorted(self._edges, step, right=True) - 1
        for sums, values in zip(self.bin_sums, (torch.ones_like(bits), bits, bits**2, draws.error), strict=True):
            sums.index_add_(0, which, values)
        means = prior + draws.taken_off / nats + table.sum(2).mean(1)
        moments = [torch.ones_like(prior), prior, floor, means, means**2]
        variances = [_variance_of_mean(values) for values in (table[..., 0], table[..., 1], table.sum(2))]
        moments += [*variances, *(variance**2 for variance in variances)]
        self.image_moments += torch.stack([moment.sum() for moment in moments])

    def compute(self) -> BoundEstimate:
        """Sum over ranks: all must call it, each with its states where its process group can reach them.

        Raises ValueError if no rank has seen an image.
        """
        states = (self.image_moments, self.replicate_sums, self.bin_sums)
        sums = (state.to("cpu", copy=True) for state in states)  # later updates add in place
        return BoundEstimate(self.plan, self.timesteps, self._edges, *sums)


@torch.no_grad()
def evaluate_bound(
    terms: BoundTerms,
    estimator: BoundEstimator,
    images: ImageSet,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> BoundEstimate:
    """Estimate the bound of a whole set of images on one device, at most batch_size evaluations at once."""
    plan = estimator.plan(terms, images)
    meter = BoundMeter(plan, terms.timesteps)
    with nullcontext() if progress is None else progress(plan.evaluations - plan.pilot_evaluations) as advance:
        for index in torch.split(torch.arange(images.size), 8 * batch_size):  # few of many images may have a draw
            x, label = images.fetch(index)
            meter.update(evaluate_draws(terms, plan, images, index, x, label, batch_size, advance))
    return meter.compute()


class _Error(NamedTuple):
    """A standard error with its degrees of freedom."""

    stderr: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Half the width of the 95% interval, by Student's t."""
        return float(stdtrit(self.freedom, 0.975)) * self.stderr

    def plus(self, other: "_Error") -> "_Error":
        """The error of a sum with another independent error, freedom by Welch and Satterthwaite; ignores nan."""
        known = [error for error in (self, other) if error.stderr == error.stderr]
        if not known:
            return _Error(math.nan, 1)
        variance = sum(error.stderr**2 for error in known)
        parts = sum(error.stderr**4 / error.freedom for error in known)
        return _Error(math.sqrt(variance), variance**2 / parts if parts else known[0].freedom)


def _error_of_sum(n: float, variance: float, squares: float, freedom: int) -> _Error:
    """The error of a mean over n images, each with a variance of its own; freedom by Satterthwaite.

    variance, squares: sums over the images of the variance of each and of its square; freedom: of one image's.
    """
    return _Error(math.sqrt(variance) / n, freedom * (variance**2 / squares if squares else n))


def _touched(edges: Tensor, strata: Tensor) -> Tensor:
    """Count the strata, each of the steps strata[k] .. strata[k + 1] − 1, that share steps with each bin of `edges`."""
    first = torch.searchsorted(strata, edges[:-1], right=True)
    last = torch.searchsorted(strata, edges[1:] - 1, right=True)
    return last - first + 1


def _variance_of_mean(replicates: Tensor) -> Tensor:
    """Variance of the mean over replicates, (B, R) -> (B,); nan for one replicate."""
    if replicates.shape[1] == 1:
        return torch.full_like(replicates[:, 0], math.nan)
    return replicates.var(1) / replicates.shape[1]
