"""The bound of a split of images, on times and noise that are always the same.

They are keyed by the image's index alone, not by the run's seed: bounds of two epochs, or of two runs, differ only
because the models do.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.likelihood.estimators import BoundEstimator, BoundPlan, evaluate_draws
from noising.diffusion.likelihood.image_set import ImageSet
from noising.diffusion.likelihood.meter import BoundEstimate, BoundMeter
from noising.diffusion.likelihood.terms import ModelTerms
from noising.diffusion.transitions import Chain
from noising.errors import config_errors
from noising.runs.declarations import Declaration

_SEED = 0


def bound_declarations(unit: str) -> dict[str, Declaration]:
    """Declarations of the bound's numbers, which are all in one unit."""
    shown = {
        "bound": Declaration("bound on -log p(x)", unit, "lower"),
        "prior": Declaration("prior L_T", unit, shown=False),
        "steps": Declaration("steps, sum of L_t", unit, shown=False),
        "decoder": Declaration("decoder L_0", unit, shown=False),
        "decoder_floor": Declaration("least possible L_0", unit, shown=False),
    }
    yardsticks = {
        "histogram_baseline": Declaration("baseline: pixel histograms", unit, shown=False),
        "uniform_baseline": Declaration("baseline: uniform levels", unit, shown=False),
    }
    return shown | yardsticks


def _outside_autocast() -> ExitStack:
    """Switch autocast off: a bound computed in half precision is off by +0.005 bits/dim."""
    stack = ExitStack()
    for device_type in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
        stack.enter_context(torch.autocast(device_type, enabled=False))
    return stack


class BoundEvaluation:
    """An estimator of the bound, the decoder of its chain of T steps, and the sums over the images so far.

    estimate: the bound of the images of all ranks, from `compute` on.
    """

    estimate: BoundEstimate

    def __init__(self, estimator: BoundEstimator, decoder: Decoder, timesteps: int, split: str) -> None:
        """split: the name of the set of images, which is part of the key of the draws."""
        self.estimator, self.decoder, self.timesteps, self.split = estimator, decoder, timesteps, split

    @torch.no_grad()
    def begin(
        self,
        denoiser: Denoiser,
        count: int,
        fetch: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        share: Callable[[Any], Any] | None = None,
    ) -> None:
        """Plan the draws for `count` images with the denoiser's present schedule, and start the sums anew.

        fetch: indices (B,) -> images (B, C, H, W) in [−1, 1] and their classes, None for an unconditional network, on
        the denoiser's device; share: value -> that of rank 0.
        """
        self.chain = Chain.uniform(denoiser.schedule, self.timesteps)
        self.terms = ModelTerms(denoiser, self.chain, self.decoder, self.estimator.clip)
        self._images = ImageSet(count, fetch, self.split, _SEED)
        with _outside_autocast(), config_errors("bound"):
            self.plan: BoundPlan = self.estimator.plan(self.terms, self._images, share)
        self._meter = BoundMeter(self.plan, self.timesteps)
        self._at_once = 1

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor, class_label: Tensor | None = None) -> None:
        """Add images x (B, C, H, W) in [−1, 1], of global indices (B,) and classes (B,); in float32 always."""
        self._at_once = max(self._at_once, len(x))  # a small last batch still evaluates many draws at once
        given = self.terms, self.plan, self._images, index.cpu(), x, class_label
        with _outside_autocast():
            self._meter.update(evaluate_draws(*given, self._at_once))

    def compute(self, device: torch.device) -> BoundEstimate:
        """Estimate the bound from the sums of all ranks, all of which must call it; device: the process group's.

        Raises ValueError if no rank has seen an image.
        """
        if device.type != "mps":  # which has no float64, and no other process
            self._meter.to(device)  # NCCL reaches no sums on the host
        self.estimate = self._meter.compute()
        return self.estimate

    def card(self) -> dict[str, Any]:
        """Everything that the numbers depend on besides the weights."""
        return {
            "unit": self.decoder.unit,
            "estimator": type(self.estimator).__name__,
            **{name: getattr(self.estimator, name) for name in inspect.signature(type(self.estimator)).parameters},
            "timesteps": self.timesteps,
            "grid": "t = i/T",
            "evaluations": self.plan.evaluations,
            "evaluations_of_the_full_sum": self.timesteps * self.estimate.images,
            "limited_to_the_full_sum": self.plan.limited,
            "replicates": self.plan.replicates,
            "decoder": type(self.decoder).__name__,
            "split": self.split,
            "images": self.estimate.images,
            "precision": "float32",
            "noise_seed": _SEED,
        }
