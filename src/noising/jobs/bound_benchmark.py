"""What the adaptive bound saves: against all T terms of few images, and against all T terms of them all."""

from __future__ import annotations

import math

import torch

from noising.configuration import ConfigError
from noising.diffusion.adaptive_bound import Adaptive
from noising.diffusion.bound_estimators import ImageSet, log_strata
from noising.diffusion.bound_meter import BoundMeter, measure
from noising.diffusion.bound_terms import BoundTerms
from noising.jobs.benchmark import Benchmark, Ratio
from noising.jobs.progress import evaluations_bar
from noising.randomness import Streams
from noising.trained import TrainedRun

__all__ = ["BoundBenchmark"]

_STRATA, _IMAGES = 100, 64


class BoundBenchmark(Benchmark):
    """Network evaluations to one and the same standard error."""

    def __init__(self, stderr: float = 0.01, full_sum_images: int | None = None, clip: float | None = 1.0) -> None:
        """stderr: bits/dim, over times, noise and images; full_sum_images: how many the second comparison takes."""
        if not stderr > 0:
            raise ValueError(f"stderr must be positive, got {stderr}")
        if full_sum_images is not None and full_sum_images < 2:
            raise ValueError(f"full_sum_images must be at least 2 or null, got {full_sum_images}")
        self.stderr = stderr
        self.full_sum_images = full_sum_images
        self.clip = clip

    def run(self, trained: TrainedRun, device: torch.device, batch_size: int) -> list[Ratio]:
        terms, images = trained.bound_terms(self.clip, device), trained.image_set("test", device)
        noise = full_sum_variance(terms, images, batch_size)
        pilot = measure(terms, Adaptive(0.3, clip=self.clip), images, batch_size, evaluations_bar)
        assert pilot.plan.image_variance is not None
        between = pilot.plan.image_variance[0]
        few = Adaptive(self._monte_carlo_part(between / images.size), clip=self.clip)
        first = self._images_random(measure(terms, few, images, batch_size, evaluations_bar), noise, terms.timesteps)
        some = images._replace(size=min(self.full_sum_images or images.size, images.size))
        every = Adaptive(math.sqrt(noise / some.size), clip=self.clip)
        second = self._whole_set(measure(terms, every, some, batch_size, evaluations_bar), noise, terms.timesteps)
        return [first, second]

    def _monte_carlo_part(self, image_variance: float) -> float:
        """What of the standard error is left to times and noise, when the images have had theirs."""
        left = self.stderr**2 - image_variance
        if left <= 0:
            raise ConfigError(
                f"benchmark.stderr={self.stderr}: so few test images leave ±{math.sqrt(image_variance):.4f} bits/dim "
                f"by themselves; ask for {1.25 * math.sqrt(image_variance):.2g} or more"
            )
        return math.sqrt(left)

    def _images_random(self, meter: BoundMeter, noise: float, timesteps: int) -> Ratio:
        """Images as draws from a population: all T terms of K images err by √((A + N)/K)."""
        assert meter.plan.image_variance is not None
        numbers, between = meter.compute(), meter.plan.image_variance[0]
        reached = math.hypot(numbers["bound_mc_se"], numbers["bound_image_se"])
        few_images = (between + noise) / reached**2
        card = {
            **numbers,
            "stderr_reached": reached,
            "image_std": math.sqrt(between),
            "evaluations": meter.plan.evaluations,
            "full_sum_images": few_images,
            "full_sum_evaluations": few_images * timesteps,
        }
        return Ratio(
            "images_random",
            f"bound ± {reached:.4f} bits/dim, images random",
            f"{few_images * timesteps:,.0f} (of {few_images:,.0f} images)",
            f"{meter.plan.evaluations:,}",
            few_images * timesteps / meter.plan.evaluations,
            card,
        )

    def _whole_set(self, meter: BoundMeter, noise: float, timesteps: int) -> Ratio:
        """These very images: the full sum errs by its noise alone, √(N/n)."""
        numbers, full = meter.compute(), timesteps * meter.images
        reached, wanted = numbers["bound_mc_se"], math.sqrt(noise / meter.images)
        needed = meter.plan.evaluations * (reached / wanted) ** 2  # at the full sum's own error
        card = {**numbers, "full_sum_stderr": wanted, "evaluations": meter.plan.evaluations, "images": meter.images}
        return Ratio(
            "whole_set",
            f"the {meter.images:,} images themselves, ± {wanted:.4f} by times and noise",
            f"{full:,}",
            f"{meter.plan.evaluations:,} (± {reached:.4f})",
            full / needed,
            card,
        )


def full_sum_variance(terms: BoundTerms, images: ImageSet, batch_size: int) -> float:
    """Σ_t E_x Var(L_t | x), the variance of one image's sum of all terms over its noise alone, in (bits/dim)².

    From two draws of the noise at one step a stratum and image.
    """
    edges = log_strata(terms.timesteps, _STRATA)
    index = torch.arange(min(_IMAGES, images.size))
    x, label = images.fetch(index)
    streams = Streams(images.seed, "benchmark/noise", index.tolist(), x.device)
    variance = 0.0
    for left, right in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        steps = torch.from_numpy(streams.uniform(())).mul(right - left).long() + left
        pair = [terms.at(x, steps, streams.normal(x.shape[1:]).to(x), label).nats.double() for _ in range(2)]
        variance += (right - left) * float((pair[0] - pair[1]).square().mean() / 2)
    return variance / (x[0].numel() * math.log(2)) ** 2
