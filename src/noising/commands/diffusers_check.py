"""A network against diffusers' own with the same file, where diffusers is installed."""

from typing import Any

import torch
from torch import nn

from noising.commands.conversion_checks import Check, compared
from noising.commands.foreign_weights import ForeignWeights
from noising.interchange import diffusers_dit, diffusers_unet
from noising.interchange.diffusers_dit import DiffusersDiT
from noising.interchange.diffusers_unet import NAMES_BEFORE, NAMES_NOW
from noising.models.dit import DiT

NOW = (*NAMES_NOW.query_key_value, NAMES_NOW.out)


def same_as_diffusers(network: nn.Module, file: ForeignWeights) -> list[Check]:
    """The outputs of both for noise at two steps; none where diffusers is not installed."""
    try:
        import diffusers
    except ImportError:
        return []
    dit = isinstance(network, DiT)
    theirs = _dit(diffusers, network, file) if isinstance(network, DiT) else _unet(diffusers, file)
    theirs.eval()
    side = theirs.config.sample_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, theirs.config.in_channels, side, side, generator=generator)
    steps = torch.tensor([3, 777])
    class_label = torch.tensor([0, 1])
    with torch.no_grad():
        output = theirs(x, steps, class_labels=class_label if dit or theirs.config.num_class_embeds else None).sample
        ours = network.eval()(x, steps.float(), class_label if network.classes else None)
    if dit:
        output = output[:, : ours.shape[1]]  # without the variance that SiT drops
    return [compared(f"outputs of diffusers' {type(theirs).__name__}", ours, output)]


def _unet(diffusers: Any, file: ForeignWeights) -> Any:
    config = file.config or diffusers_unet.OF_DDPM
    theirs = diffusers.UNet2DModel(**{name: config[name] for name in diffusers_unet.DEFAULTS if name in config})
    theirs.load_state_dict({_now(name): tensor for name, tensor in file.tensors.items()})
    return theirs


def _dit(diffusers: Any, network: DiT, file: ForeignWeights) -> Any:
    """diffusers' network, with the sinusoids of DiT's own code where the network here has them."""
    config = file.config or DiffusersDiT(network).config()
    theirs = diffusers.DiTTransformer2DModel(
        **{name: config[name] for name in diffusers_dit.DEFAULTS if name in config}
    )
    theirs.load_state_dict(file.tensors)
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1 if network.endpoint else 0
    return theirs


def _now(name: str) -> str:
    """Today's name of a tensor of the attention, of which the first files have another."""
    for before, now in zip((*NAMES_BEFORE.query_key_value, NAMES_BEFORE.out), NOW, strict=True):
        name = name.replace(f"{before}.", f"{now}.")
    return name
