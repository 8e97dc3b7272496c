"""Networks, knowing nothing of diffusion: ``model(x, noise_label, class_label=None)``."""

from __future__ import annotations

from noising.models.unet import UNet

__all__ = ["UNet"]
