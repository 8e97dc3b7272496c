"""Devices for the commands that run without a Trainer."""

import torch

from noising.errors import ConfigError


def find_device(name: str) -> torch.device:
    """Device of a name: auto (CUDA if there is one) or torch's own. Raises ConfigError if it cannot be used."""
    if not isinstance(name, str):
        raise ConfigError(f"device={name}: expected auto, cpu, cuda, cuda:1 or mps")
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:  # which lists every kind that torch has a word for
        raise ConfigError(f"device={name}: expected auto, cpu, cuda, cuda:1 or mps") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"device={name}: {why}; use device=cpu, or auto") from error
    return device


def find_devices(name: str, count: int) -> list[torch.device]:
    """First `count` CUDA devices, or the host that many times. Raises ConfigError if there are fewer."""
    device = find_device(name)
    if count == 1:
        return [device]
    if device.index is not None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"devices={count}: device={name} is one device; use device=cuda, cpu or auto")
    if device.type == "cpu":
        return [device] * count
    if count > torch.cuda.device_count():
        raise ConfigError(f"devices={count} is more than the {torch.cuda.device_count()} CUDA devices there are")
    return [torch.device("cuda", index) for index in range(count)]
