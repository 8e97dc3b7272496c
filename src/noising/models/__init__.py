"""Networks: ``model(x, noise_label, class_label=None)``, independent of the diffusion."""

from __future__ import annotations

from noising.models.unet import UNet

__all__ = ["UNet"]
