"""The published networks: how each is built here, and the number of parameters that its authors' code has.

And what is asked of every network: that torch compiles it, computes its features again, and has its derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from noising.models.edm2 import EDM2UNet
from noising.models.song_unet import SongUNet
from noising.models.u_shape import UShape
from noising.models.unet import UNet
from noising.models.vdm_unet import VDMUNet


class Published(NamedTuple):
    """A network of a paper; options: of its constructor; parameters: counted in the authors' code."""

    family: type[UShape]
    options: dict[str, Any]
    parameters: int

    def build(self, device: str = "meta", **others: Any) -> UShape:
        """The network; on the meta device it has shapes and no numbers."""
        with torch.device(device):
            return self.family(**({"channels": 3, "out_channels": 3} | self.options | others))


IDDPM = {"width": 128, "blocks": 3, "attention": [16, 8], "heads": 4, "groups": 32, "out_channels": 6}
ADM = IDDPM | {"resolution": 64, "multipliers": [1, 2, 3, 4], "width": 192, "classes": 1000, "null_class": False}
ADM |= {"attention": [32, 16, 8], "head_width": 64, "residual_resampling": True}
DDPM = {"resolution": 32, "width": 128, "multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [16], "heads": 1}
DDPM |= {"groups": 32, "norm_eps": 1e-6, "scale_shift": False, "corner_padding": True, "endpoint": True, "glorot": True}
NCSN = {"fourier": True, "pyramid": True, "taps": [1, 3, 3, 1]}
AT_64 = {"resolution": 64, "multipliers": [1, 2, 2, 2]}
EDM2 = {"resolution": 64, "classes": 1000}
OF_LATENTS = EDM2 | {"channels": 4, "out_channels": 4}
EDM2_AT_32 = {"resolution": 32, "multipliers": [1, 2, 3]}

VDM_LINE, VDM_CURVE = 2, 1 + 1 + 1024 + 1024 + 1024
"""Parameters of VDM's schedules, which its authors' counts include: a line's two, and those of a monotone network."""

PUBLISHED = {
    "ddpm": Published(UNet, DDPM, 35_746_307),
    "iddpm": Published(UNet, IDDPM | {"resolution": 32, "multipliers": [1, 2, 2, 2]}, 52_546_438),
    "iddpm of one output a channel": Published(
        UNet, IDDPM | {"resolution": 32, "multipliers": [1, 2, 2, 2], "out_channels": 3}, 52_542_979
    ),
    "iddpm at 64": Published(UNet, IDDPM | {"resolution": 64, "multipliers": [1, 2, 3, 4]}, 121_063_942),
    "iddpm at 64 with classes": Published(
        UNet, ADM | {"head_width": None, "residual_resampling": False, "attention": [16, 8]}, 273_049_350
    ),
    "adm at 64": Published(UNet, ADM, 295_904_454),
    "edm's adm at 64": Published(UNet, ADM | {"out_channels": 3}, 295_899_267),
    "edm's ddpm++": Published(SongUNet, {"resolution": 32}, 55_732_739),
    "edm's ddpm++ with augmentation": Published(SongUNet, {"resolution": 32, "augmentation_labels": 9}, 55_733_891),
    "edm's ddpm++ with classes": Published(
        SongUNet, {"resolution": 32, "augmentation_labels": 9, "classes": 10}, 55_735_299
    ),
    "edm's ncsn++": Published(SongUNet, NCSN | {"resolution": 32, "augmentation_labels": 9}, 56_397_827),
    "edm's ncsn++ with classes": Published(
        SongUNet, NCSN | {"resolution": 32, "augmentation_labels": 9, "classes": 10}, 56_400_643
    ),
    "edm's ddpm++ at 64": Published(SongUNet, AT_64 | {"augmentation_labels": 9}, 61_805_571),
    "edm's ncsn++ at 64": Published(SongUNet, AT_64 | NCSN | {"augmentation_labels": 9}, 62_761_091),
    "score sde's ddpm++": Published(SongUNet, {"resolution": 32, "multipliers": [1, 2, 2, 2]}, 61_804_419),
    "score sde's ddpm++, deep": Published(
        SongUNet, {"resolution": 32, "multipliers": [1, 2, 2, 2], "blocks": 8}, 106_632_579
    ),
    "edm2 xxs": Published(EDM2UNet, EDM2 | {"width": 64}, 31_307_877),
    "edm2 xs": Published(EDM2UNet, EDM2 | {"width": 128}, 124_710_949),
    "edm2 s": Published(EDM2UNet, EDM2, 280_209_381),
    "edm2 m": Published(EDM2UNet, EDM2 | {"width": 256}, 497_803_173),
    "edm2 l": Published(EDM2UNet, EDM2 | {"width": 320}, 777_492_325),
    "edm2 xl": Published(EDM2UNet, EDM2 | {"width": 384}, 1_119_276_837),
    "edm2 xxs of latents": Published(EDM2UNet, OF_LATENTS | {"width": 64}, 31_309_029),
    "edm2 xs of latents": Published(EDM2UNet, OF_LATENTS | {"width": 128}, 124_713_253),
    "edm2 s of latents": Published(EDM2UNet, OF_LATENTS, 280_212_837),
    "edm2 m of latents": Published(EDM2UNet, OF_LATENTS | {"width": 256}, 497_807_781),
    "edm2 at 32, 64 channels": Published(EDM2UNet, EDM2_AT_32 | {"width": 64}, 14_696_540),
    "edm2 at 32, 128 channels": Published(EDM2UNet, EDM2_AT_32 | {"width": 128}, 58_777_628),
    "vdm": Published(VDMUNet, {"resolution": 32}, 30_578_181 - VDM_LINE),
    "vdm of augmented images": Published(VDMUNet, {"resolution": 32, "width": 256}, 122_140_677 - VDM_CURVE),
    "vdm of augmented images, the paper's": Published(
        VDMUNet, {"resolution": 32, "width": 256, "attention": True}, 139_279_877 - VDM_CURVE
    ),
}

Network = TypeVar("Network", bound=nn.Module)


def awake(network: Network) -> Network:
    """The network with no weight at its start, where many are zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def same_when_compiled(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Torch compiles it in one graph, which gives the same output."""
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), network(*inputs), rtol=1e-5, atol=1e-5)


def same_when_checkpointed(build: Callable[[bool], nn.Module], inputs: tuple[Any, ...], at_most: float = 0.5) -> None:
    """The gradients are the same, dropout included, and less is stored for them; build: checkpointing -> a network."""
    found = []
    for checkpointing in (False, True):
        network, stored = build(checkpointing), 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal stored
            stored += tensor.numel()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = network(*inputs).square().sum()
        loss.backward()
        found.append((stored, {name: parameter.grad for name, parameter in network.named_parameters()}))
    (whole, expected), (less, gradients) = found
    assert less < at_most * whole
    for parameter, gradient in expected.items():
        assert gradient is not None, parameter
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-5, atol=1e-6)


def derivative_in_forward_mode(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """The derivative in the image along a direction is that of differences; inputs: the image, then what is told."""
    network = network.double().eval()
    x, *others = (i.double() if i is not None and i.is_floating_point() else i for i in inputs)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    _, slope = torch.func.jvp(lambda x: network(x, *others), (x,), (direction,))
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (network(x + sign * step * direction, *others) for sign in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


def about_the_same_in_bfloat16(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Mixed precision changes the output by its rounding only."""
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*inputs)
    exact = network(*inputs)
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
