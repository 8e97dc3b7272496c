"""The bound of a split of images, on times and noise that are always the same.

They are keyed by the image's index alone, not by the run's seed: the bound of two epochs, or of two runs, differs
because the models do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noising.diffusion.bound_estimators import BoundEstimator, BoundMeter
from noising.diffusion.decoders import Decoder
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.transition import Chain
from noising.randomness import Streams

__all__ = ["BoundEvaluation"]

_SEED = 0


class BoundEvaluation:
    """An estimator of the bound, the decoder that ends its chain of T steps, and the sums over images so far."""

    def __init__(self, estimator: BoundEstimator, decoder: Decoder, timesteps: int, purpose: str) -> None:
        """purpose: the split's name, part of the key of its draws."""
        self.estimator = estimator
        self.decoder = decoder
        self.timesteps = timesteps
        self.purpose = purpose
        self.meter = BoundMeter()
        self._chain: Chain | None = None

    def reset(self) -> None:
        """Forget the images seen; the schedule may have changed since."""
        self.meter = BoundMeter()
        self._chain = None

    @torch.no_grad()
    def update(self, denoiser: Denoiser, x: Tensor, index: Tensor, class_label: Tensor | None = None) -> None:
        """Add images x (B, C, H, W) in [−1, 1], of global indices (B,); in float32 always."""
        if self._chain is None:
            self._chain = Chain.uniform(denoiser.schedule, self.timesteps)
        with torch.autocast(x.device.type, enabled=False):
            streams = Streams(_SEED, f"bound/{self.purpose}", index.tolist(), x.device)
            self.meter.update(self.estimator(denoiser, self._chain, x, self.decoder, streams, class_label))

    def card(self) -> dict[str, Any]:
        """All that the numbers depend on beside the weights."""
        return {
            "unit": self.decoder.unit,
            "estimator": type(self.estimator).__name__,
            "timesteps": self.timesteps,
            "evaluations_per_image": self.estimator.evaluations(self.timesteps),
            "clip": self.estimator.clip,
            "decoder": type(self.decoder).__name__,
            "split": self.purpose,
            "images": self.meter.images,
            "precision": "float32",
            "noise_seed": _SEED,
        }
