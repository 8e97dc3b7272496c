"""A network against diffusers' own with the same file, where diffusers is installed."""

from typing import Any

import torch
from torch import nn

from noising.commands.conversion_checks import Check, compared
from noising.commands.foreign_weights import ForeignWeights
from noising.interchange.diffusers_unet import DEFAULTS, NAMES_BEFORE, NAMES_NOW, OF_DDPM

NOW = (*NAMES_NOW.query_key_value, NAMES_NOW.out)


def same_as_diffusers(network: nn.Module, file: ForeignWeights) -> list[Check]:
    """The outputs of both for noise at two steps; none where diffusers is not installed."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return []
    config = {name: value for name, value in (file.config or OF_DDPM).items() if name in DEFAULTS}
    theirs: Any = UNet2DModel(**config)  # type: ignore[no-untyped-call]
    theirs.eval()
    renamed = {_now(name): tensor for name, tensor in file.tensors.items()}
    theirs.load_state_dict(renamed)
    side = theirs.config.sample_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, theirs.config.in_channels, side, side, generator=generator)
    steps = torch.tensor([3, 777])
    class_label = torch.tensor([0, 1]) if theirs.config.num_class_embeds else None
    with torch.no_grad():
        output = theirs(x, steps, class_labels=class_label).sample
        return [compared("outputs of diffusers' UNet2DModel", network.eval()(x, steps.float(), class_label), output)]


def _now(name: str) -> str:
    """Today's name of a tensor of the attention, of which the first files have another."""
    for before, now in zip((*NAMES_BEFORE.query_key_value, NAMES_BEFORE.out), NOW, strict=True):
        name = name.replace(f"{before}.", f"{now}.")
    return name
