"""The adaptive estimate of the bound against all of its terms."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from noising.commands.benchmark import Benchmark, Ratio
from noising.commands.tables import evaluations_bar
from noising.diffusion.likelihood.adaptive import Adaptive
from noising.diffusion.likelihood.controls import ControlVariates
from noising.diffusion.likelihood.estimators import log_strata
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.meter import evaluate_bound
from noising.diffusion.likelihood.pilot import evaluate_rows, summarize
from noising.diffusion.likelihood.terms import BoundTerms
from noising.errors import ConfigError
from noising.randomness import Streams
from noising.trained import TrainedRun

PILOT_IMAGES, IMAGE_STRATA = 1000, 16
"""Images that the variance over images is estimated from, since their bounds have a long tail, and strata of steps."""
NOISE_STRATA, NOISE_IMAGES = 100, 128
"""Strata of steps, and images, that the noise of one image's sum of all terms is estimated from."""


@dataclass
class BoundBenchmark(Benchmark):
    """Network evaluations that all terms and the adaptive estimate need for the same standard error."""

    columns = ("network evaluations", "all terms", "adaptive", "times fewer")

    stderr: float = 0.01
    """bits/dim, over times, noise and images."""
    full_sum_images: int | None = None
    """Images of the second comparison; None for all."""
    repeats: int = 24
    """Independent evaluations that the error reached is averaged over, in the first comparison."""
    full_sum_repeats: int = 4
    """Those in the second."""
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if min(self.repeats, self.full_sum_repeats) < 1:
            counts = f"{self.repeats}, {self.full_sum_repeats}"
            raise ValueError(f"repeats and full_sum_repeats must be at least 1, got {counts}")
        if not self.stderr > 0:
            raise ValueError(f"stderr must be positive, got {self.stderr}")
        if self.full_sum_images is not None and self.full_sum_images < 2:
            raise ValueError(f"full_sum_images must be at least 2 or null, got {self.full_sum_images}")

    def run(self, trained: TrainedRun | None, device: torch.device, batch_size: int) -> list[Ratio]:
        assert trained is not None
        terms, images = trained.bound_terms(self.clip, device), trained.image_set("test", device)
        noise = full_sum_variance(terms, images)
        between = image_variance(terms, images)
        over_images, left = math.sqrt(between / images.size), self.stderr**2 - between / images.size
        if left <= 0:
            raise ConfigError(
                f"benchmark.stderr={self.stderr}: with this number of test images the error is at least "
                f"{over_images:.4f} bits/dim; use benchmark.stderr={1.25 * over_images:.2g} or more"
            )
        # images drawn from a population: all T terms of K images err by √((A + N)/K), A of the images, N of the noise
        few = Adaptive(math.sqrt(left), clip=self.clip)
        mc_se, evaluations = _repeated(self.repeats, terms, few, images, batch_size)
        reached = math.hypot(mc_se, over_images)
        few_images = (between + noise) / reached**2
        full_sum = few_images * terms.timesteps
        card: dict[str, Any] = {
            "stderr_reached": reached,
            "mc_se": mc_se,
            "image_std": math.sqrt(between),
            "images": images.size,
            "repeats": self.repeats,
            "evaluations": round(evaluations),
            "full_sum_images": few_images,
            "full_sum_evaluations": full_sum,
        }
        what, baseline = f"bound ± {reached:.4f}, over random images", f"{full_sum:,.0f} (of {few_images:,.0f} images)"
        random = Ratio("images_random", what, baseline, f"{evaluations:,.0f}", full_sum / evaluations, card)
        # were the terms of an image known from one evaluation, as many images would be needed
        limit = between / reached**2
        what, ours = (
            "the same, one evaluation per image",
            f"{evaluations:,.0f} ({evaluations / limit:.2f} times as many)",
        )
        one_each = Ratio("one_each", what, f"{limit:,.0f}", ours, limit / evaluations, card)

        # these very images: the full sum errs by its noise alone, √(N/n)
        some = images._replace(size=min(self.full_sum_images or images.size, images.size))
        wanted, full_sum = math.sqrt(noise / some.size), terms.timesteps * some.size
        every = Adaptive(wanted, clip=self.clip)
        mc_se, evaluations = _repeated(self.full_sum_repeats, terms, every, some, batch_size)
        equal = evaluations * (mc_se / wanted) ** 2  # to the full sum's own error
        card = {
            "full_sum_stderr": wanted,
            "full_sum_evaluations": full_sum,
            "mc_se": mc_se,
            "images": some.size,
            "repeats": self.full_sum_repeats,
            "evaluations": round(evaluations),
        }
        what, ours = f"bound of these {some.size:,} images ± {wanted:.4f}", f"{evaluations:,.0f} (± {mc_se:.4f})"
        return [random, one_each, Ratio("whole_set", what, f"{full_sum:,}", ours, full_sum / equal, card)]


def _repeated(
    repeats: int, terms: BoundTerms, estimator: Adaptive, images: ImageSet, batch_size: int
) -> tuple[float, float]:
    """Monte Carlo standard error and network evaluations of one estimate, averaged over repeats."""
    variance, evaluations = 0.0, 0.0
    for seed in range(repeats):
        bound = evaluate_bound(terms, estimator, images._replace(seed=seed), batch_size, evaluations_bar)
        variance += bound.numbers()["bound_mc_se"] ** 2 / repeats
        evaluations += bound.plan.evaluations / repeats
    return math.sqrt(variance), evaluations


def image_variance(terms: BoundTerms, images: ImageSet) -> float:
    """The variance of the bound between images, (bits/dim)², from a pilot of many."""
    edges, variates = log_strata(terms.timesteps, IMAGE_STRATA), ControlVariates(images)
    rows = evaluate_rows(terms, images, variates, edges, range(min(PILOT_IMAGES, images.size)))
    pilot = summarize(rows, images, variates, edges)
    assert pilot.image_spread is not None  # no image comes twice
    return pilot.image_spread.variance / (pilot.dims * math.log(2)) ** 2


def full_sum_variance(terms: BoundTerms, images: ImageSet) -> float:
    """Σ_t E_x Var(L_t | x), the variance of one image's sum of all terms over its noise alone, in (bits/dim)².

    Estimated from two draws of the noise for each image, at one step of each stratum.
    """
    edges = log_strata(terms.timesteps, NOISE_STRATA)
    index = torch.arange(min(NOISE_IMAGES, images.size))
    x, label = images.fetch(index)
    streams = Streams(images.seed, "benchmark/noise", index.tolist(), x.device)
    variance = 0.0
    for left, right in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        steps = streams.uniform(()).cpu().double().mul(right - left).long() + left
        pair = [terms.at(x, steps, streams.normal(x.shape[1:]).to(x), label).nats.double() for _ in range(2)]
        variance += (right - left) * float((pair[0] - pair[1]).square().mean() / 2)
    return variance / (x[0].numel() * math.log(2)) ** 2
