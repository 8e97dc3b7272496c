"""A pilot: the terms of a few images, to tell how much they vary, where, and what of it control variates foresee.

Its losses are then discarded, so that an estimate that was planned by it is unbiased whatever the pilot found.

A row of the pilot is an image with one step of each stratum, evaluated twice, with two noises. The difference of the
two tells the spread over the noise, their mean that over images and steps. The trend of the steps within a stratum is
no spread, since they are evenly spaced in the estimate that follows: a line is taken off. Nor is what differs between
very few images, of which every stratum has equally many draws: each comes in two rows, and has a mean of its own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from noising.diffusion.likelihood.controls import ControlVariates
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.terms import BoundTerms
from noising.randomness import Streams, generator

DEFENSIVE = 0.05  # share of draws uniform over the strata, in case the pilot underestimates the spread of one
FEW = 8  # fewer rows tell no coefficients, fewer images none of their own
MARGIN = 4  # rows; coefficients are taken where they lessen the error of a value left out by (1 + 4/rows)
PRIOR_ROWS = 2  # weight, in rows, of an even spread in that of each stratum, when the draws are shared out
AT_ONCE = 64  # evaluations in a batch


class VarianceEstimate(NamedTuple):
    """An estimate of a variance, with its degrees of freedom."""

    value: float
    freedom: float


class ImageSpread(NamedTuple):
    """The variance of the bound between images, Monte Carlo variance subtracted; `raw` includes it."""

    variance: float
    raw: float
    freedom: float


class Pilot(NamedTuple):
    """Variances of the terms, less control variates, by J rows of images of D = dims numbers each, in nats.

    edges: (K + 1,), stratum k holds the steps edges[k] .. edges[k + 1] − 1; noise: (K,), variance of a term, times the
    stratum's number of steps, over the noise; spread: (K,), that over images and steps too, about a line in the steps;
    coefficients: (K, 3), as in `Controls`; image_variance: of the bound between images, less a standard error;
    image_spread: that with nothing taken off, None where an image comes twice.
    """

    edges: Tensor
    noise: Tensor
    spread: Tensor
    coefficients: Tensor
    image_variance: float
    image_spread: ImageSpread | None
    rows: int
    dims: int

    @property
    def evaluations(self) -> int:
        """The network's."""
        return 2 * self.rows * len(self.spread)

    @property
    def shares(self) -> Tensor:
        """(K,): share of the draws in each stratum, which sum to 1: p_t ∝ standard deviation, and a uniform part."""
        size = (self.rows * self.spread + PRIOR_ROWS * self.spread.mean()).sqrt()
        even = torch.full_like(size, 1 / len(size))
        return (1 - DEFENSIVE) * size / size.sum() + DEFENSIVE * even if float(size.sum()) > 0 else even

    @property
    def variance(self) -> float:
        """Variance of one draw L_t/p_t about its stratum's line, over images and noise."""
        return float((self.spread / self.shares).sum())

    def noise_of_sum(self, strata: slice) -> VarianceEstimate:
        """The variance over the noise of the sum of an image's terms, all those of some strata."""
        parts = (self.noise / self.edges.diff())[strata]
        squares = float((parts**2).sum()) / self.rows  # freedom by Satterthwaite, a degree for each row and stratum
        return VarianceEstimate(float(parts.sum()), float(parts.sum()) ** 2 / squares if squares > 0 else math.inf)


class PilotRows(NamedTuple):
    """The values of J rows in K strata, float64 on the host.

    images: (J,), their indices; steps: (J, K); nats and control: (J, K, 2), terms and the noise's control variate.
    """

    images: Tensor
    steps: Tensor
    nats: Tensor
    control: Tensor

    def join(self, more: "PilotRows") -> "PilotRows":
        """These rows, and more of them."""
        return PilotRows(*(torch.cat(both) for both in zip(self, more, strict=True)))


def run_pilot(
    terms: BoundTerms,
    images: ImageSet,
    variates: ControlVariates,
    edges: Tensor,
    least: int,
    enough: Callable[[Pilot], int],
) -> Pilot:
    """Evaluate `least` rows, and more while `enough` asks for them by what they tell, at most doubling them."""
    rows = evaluate_rows(terms, images, variates, edges, range(least))
    while True:
        pilot = summarize(rows, images, variates, edges)
        more = range(pilot.rows, min(enough(pilot), 2 * pilot.rows))
        if not more:
            return pilot
        rows = rows.join(evaluate_rows(terms, images, variates, edges, more))


def evaluate_rows(
    terms: BoundTerms, images: ImageSet, variates: ControlVariates, edges: Tensor, numbers: range
) -> PilotRows:
    """Evaluate the rows of these numbers; the images come in a random order, that begins anew after the last."""
    order = torch.from_numpy(generator(images.seed, f"bound/{images.purpose}/pilot images").permutation(images.size))
    together = 2 if images.size < FEW else 1
    index = order[torch.tensor(numbers) // together % images.size]
    x, label = images.fetch(index)
    streams = Streams(images.seed, f"bound/{images.purpose}/pilot", numbers, x.device)
    widths = edges.diff()
    steps = edges[:-1] + (streams.uniform(widths.shape).cpu().double() * widths).long()
    found = []
    every = torch.arange(len(numbers)).repeat_interleave(2 * len(widths)), steps.repeat_interleave(2, 1).flatten()
    for row, step in zip(*(torch.split(part, AT_ONCE) for part in every), strict=True):
        noise = streams.normal(x.shape[1:], row).to(x)
        here = row.to(x.device)
        nats, _ = terms.at(x[here], step, noise, None if label is None else label[here])
        found.append(torch.stack([nats, variates.of_noise(x[here], terms.level(step), noise)]).double())
    nats, control = torch.cat(found, 1).cpu().reshape(2, *steps.shape, 2)
    return PilotRows(index, steps, nats, control)


def summarize(rows: PilotRows, images: ImageSet, variates: ControlVariates, edges: Tensor) -> Pilot:
    """Estimate the variances of the set of images from the rows."""
    index, steps, count = rows.images, rows.steps.T.double(), len(rows.images)
    widths = edges.diff().double()
    nats, control = (rows.nats.movedim(0, 1) * widths[:, None, None], rows.control.movedim(0, 1))  # (K, J, 2)

    of_noise = _fit(_difference(nats), None, (count >= FEW) * _difference(control)[..., None])
    noise = of_noise.variance / 2

    mean = nats.mean(2) - of_noise.coefficients * control.mean(2)
    means = (index[:, None] == torch.unique(index)) if images.size < FEW else torch.ones(count, 1)
    slope = (steps - steps.mean(1, keepdim=True))[..., None] * (count > 2)
    line = torch.cat([means.double().expand(len(widths), -1, -1), slope], 2)
    features = (min(count, images.size) >= FEW) * variates.of_images[index]
    of_images = _fit(mean, line, features.expand(len(widths), -1, -1))
    monte_carlo = float(noise.sum() / 2)  # of the bound of a row
    free = float(of_images.freedom.min())
    left = float(of_images.residuals.sum(0).square().sum()) / free
    about_lines = _least_squares(mean, line)
    bounds = about_lines.residuals.sum(0)
    lost = count - 1 - _freedom_of_sums(line, about_lines.variance.sqrt())  # to the slopes of the lines
    distinct = FEW <= images.size >= count
    return Pilot(
        edges=edges,
        noise=noise,
        spread=(of_images.variance - noise / 2).clamp(min=0) + noise,
        coefficients=torch.cat([of_noise.coefficients, of_images.coefficients], 1) / widths[:, None],
        image_variance=max(left - monte_carlo - math.sqrt(2 / free) * left, 0.0),
        image_spread=_image_spread(bounds, features, variates, monte_carlo, lost) if distinct else None,
        rows=count,
        dims=images.fetch(index[:1])[0].numel(),
    )


def _difference(pairs: Tensor) -> Tensor:
    """The first less the second: (..., 2) -> (...)."""
    return pairs[..., 0] - pairs[..., 1]


def _freedom_of_sums(columns: Tensor, size: Tensor) -> float:
    """Degrees of freedom of sums over strata of residuals about columns (K, J, p), of like values of any size (K,).

    Each stratum has coefficients of its own, so that together they take more of what the strata have in common.
    """
    residual = torch.eye(columns.shape[1], dtype=columns.dtype) - columns @ torch.linalg.pinv(columns)
    common = torch.einsum("kij,lij->kl", residual, residual)
    return float(size @ common @ size / size.sum() ** 2) if float(size.sum()) > 0 else float(common.diagonal().min())


def _image_spread(
    bounds: Tensor, features: Tensor, variates: ControlVariates, monte_carlo: float, lost: float
) -> ImageSpread:
    """The spread of bounds (J,), of images with features (J, 2): what these foresee is known of every image.

    lost: degrees of freedom that the bounds have lost before.
    """
    fit = _fit(bounds[None], torch.ones_like(bounds)[None, :, None], features[None])
    free = max(float(fit.freedom) - lost, 1.0)
    raw = float(fit.residuals.square().sum()) / free
    of_coefficients = (len(bounds) - 1 - float(fit.freedom)) * raw / len(bounds)
    foreseen = max(float((variates.of_images @ fit.coefficients[0]).square().mean()) - of_coefficients, 0.0)
    error = 4 * foreseen * raw / len(bounds) + 2 * raw**2 / free  # variance of foreseen + raw
    freedom = 2 * (foreseen + raw) ** 2 / error if error > 0 else math.inf
    return ImageSpread(foreseen + max(raw - monte_carlo, 0.0), foreseen + raw, freedom)


class _Fit(NamedTuple):
    """Least squares in each of K strata: coefficients (K, p), residuals (K, J), and numbers (K,).

    variance: of another value about what is foreseen of it; freedom: its degrees of freedom; left_out: mean square of
    each value about what the others foresee.
    """

    coefficients: Tensor
    residuals: Tensor
    variance: Tensor
    freedom: Tensor
    left_out: Tensor


def _fit(values: Tensor, always: Tensor | None, optional: Tensor) -> _Fit:
    """Fit values (K, J) by columns (K, J, p), and by optional ones if values left out are foreseen better with them.

    The coefficients are those of the optional columns, 0 if they were left away.
    """
    always = optional[..., :0] if always is None else always
    with_all, without = _least_squares(values, torch.cat([always, optional], 2)), _least_squares(values, always)
    if float(with_all.left_out.sum()) * (1 + MARGIN / values.shape[1]) < float(without.left_out.sum()):
        return with_all._replace(
            coefficients=with_all.coefficients[:, always.shape[2] :],
            variance=with_all.left_out,
        )
    return without._replace(coefficients=torch.zeros_like(optional[:, 0]))


def _least_squares(values: Tensor, columns: Tensor) -> _Fit:
    inverse = torch.linalg.pinv(columns)
    coefficients = (inverse @ values[..., None])[..., 0]
    leverage = (columns * inverse.mT).sum(2)
    residuals = values - (columns @ coefficients[..., None])[..., 0]
    freedom = (values.shape[1] - leverage.sum(1)).clamp(min=1)
    left_out = residuals / (1 - leverage).clamp(min=1e-6)
    return _Fit(coefficients, residuals, residuals.square().sum(1) / freedom, freedom, left_out.square().mean(1))
