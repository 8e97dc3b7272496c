"""The device that a job without a Trainer runs on."""

from __future__ import annotations

import torch

from noising.configuration import ConfigError

__all__ = ["find_device"]


def find_device(name: str) -> torch.device:
    """auto (a CUDA device if there is one), or torch's own names. Raises ConfigError if it cannot be used."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name}: {str(error).splitlines()[0]}") from error
    return device
