"""Networks of any signature as the denoiser calls them: model(x, noise_label, class_label=None) -> (B, C, H, W)."""

import inspect

import torch
from torch import Tensor, nn

from noising.errors import require

CLASS_NAMES = ("class_label", "class_labels", "label", "labels", "y")
"""Names of the parameter for a class, in this project, diffusers and elsewhere; else it is the third parameter."""


class Adapted(nn.Module):
    """A network that names its class label otherwise, or takes none.

    classes: number of classes; without a class label the network is given this number, the row after the last.
    """

    def __init__(self, network: nn.Module, classes: int = 0) -> None:
        """Raises ValueError for classes that the network does not take."""
        super().__init__()
        self.network, self.classes = network, classes
        self.label_name = _class_parameter(network)
        name = type(network).__name__
        message = f"{name}.forward takes no class label: give it a third parameter, class_label=None"
        require(not classes or self.label_name is not None, message)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        if self.label_name is None:
            return output_of(self.network(x, noise_label))
        if class_label is None and self.classes:
            class_label = torch.full(noise_label.shape, self.classes, device=noise_label.device)  # (B,)
        return output_of(self.network(x, noise_label, **{self.label_name: class_label}))


def adapted(network: nn.Module, classes: int = 0) -> nn.Module:
    """The network itself, if it has a parameter `class_label`, or else `Adapted`."""
    return network if _class_parameter(network) == "class_label" else Adapted(network, classes)


def output_of(output: Tensor | object) -> Tensor:
    """The images that a network gives: its tensor, the field `sample` as in diffusers, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    first: Tensor = output[0] if type(output) in (tuple, list) else output.sample  # type: ignore[index,attr-defined]
    return first


@torch.no_grad()
def require_fitting(network: nn.Module, channels: int, out_channels: int, resolution: int, classes: int = 0) -> None:
    """Evaluate a network on one grey image and its class, and leave it as it was.

    Raises ValueError if it gives another shape, or not a tensor; and whatever the network raises.
    """
    x, noise_label = torch.zeros(1, channels, resolution, resolution), torch.full((1,), 500.0)
    class_label = torch.zeros(1, dtype=torch.long) if classes else None
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        output = network(x, noise_label, class_label=class_label)
    finally:
        for part, training in modes:
            part.training = training
    output = output_of(output)
    expected, found = (1, out_channels, resolution, resolution), tuple(getattr(output, "shape", ()))
    require(found == expected, f"for x of shape {tuple(x.shape)} it gives {found}, where {expected} is expected")


def _class_parameter(network: nn.Module) -> str | None:
    """The name of the parameter for the class; None if there is none."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    names = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_POSITIONAL]
    for name in CLASS_NAMES:
        if name in names:
            return name
    third = parameters[2:3]
    positional = [p for p in third if p.kind == p.POSITIONAL_OR_KEYWORD and p.default in (p.empty, None)]
    return positional[0].name if positional else None
