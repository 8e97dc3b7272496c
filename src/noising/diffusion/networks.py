"""Networks of any signature as the denoiser calls them: model(x, noise_label, class_label=None) -> (B, C, H, W)."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noising.errors import require

CLASS_NAMES = ("class_label", "class_labels", "label", "labels", "y")
"""Names of the parameter for a class, in this project, diffusers and elsewhere; else it is the third parameter."""
AUGMENTATION_NAMES = ("augmentation", "augment_labels")
"""Names of the parameter for the labels of an image's augmentation, in this project and EDM's."""


class Adapted(nn.Module):
    """A network that names its class label or its augmentation otherwise, or takes none.

    classes: number of classes; without a class label the network is given this number, the row after the last.
    """

    def __init__(self, network: nn.Module, classes: int = 0) -> None:
        """Raises ValueError for classes that the network does not take."""
        super().__init__()
        self.network, self.classes = network, classes
        self.label_name, self.augmentation_name = _class_parameter(network), _augmentation_parameter(network)
        name = type(network).__name__
        way = "give it a third parameter, class_label=None, or use label_dropout=null"
        message = f"{name}.forward takes no class label: {way}"
        require(not classes or self.label_name is not None, message)

    def forward(
        self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        condition = {}
        if class_label is None and self.classes:
            class_label = no_class(noise_label, self.classes)  # (B,)
        if self.label_name is not None:
            condition[self.label_name] = class_label
        if augmentation is not None:
            condition[self.augmentation_name or AUGMENTATION_NAMES[0]] = augmentation
        return output_of(self.network(x, noise_label, **condition))


def no_class(noise_label: Tensor, classes: int) -> Tensor:
    """The label of no class, the number of classes, for images of these noise labels (B,): (B,) int64."""
    return torch.full(noise_label.shape, classes, device=noise_label.device)


def adapted(network: nn.Module, classes: int = 0) -> nn.Module:
    """The network itself, if its parameters are named as the denoiser's are, or else `Adapted`."""
    ours = _class_parameter(network) == "class_label" and _augmentation_parameter(network) in (None, "augmentation")
    return network if ours else Adapted(network, classes)


def log_variance_of(network: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A network's estimate of the logarithm of its loss at a noise label, (B,) -> (B,): None if it has none."""
    found: Callable[[Tensor], Tensor] | None = getattr(
        network.network if isinstance(network, Adapted) else network, "log_variance", None
    )
    return found


def output_of(output: Tensor | object) -> Tensor:
    """The images that a network gives: its tensor, the field `sample` as in diffusers, or the first of a tuple.

    Raises ValueError for anything else.
    """
    if isinstance(output, Tensor):
        return output
    first = next(iter(output), None) if type(output) in (tuple, list) else getattr(output, "sample", None)  # type: ignore[call-overload]
    if not isinstance(first, Tensor):
        raise ValueError(
            f"it returns {_kind(output)}: expected a tensor (B, C, H, W), a tuple that begins with such a tensor, "
            "or an object that has it as .sample"
        )
    return first


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A context with the module in evaluation mode; restores the mode of each part afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def require_fitting(
    network: nn.Module,
    noise_label: Tensor,
    channels: int,
    out_channels: int,
    resolution: int,
    classes: int = 0,
    augmentation_labels: int = 0,
) -> None:
    """Evaluate a network, as `adapted` gives it, on grey images, one for each noise label (B,); leave it as it was.

    With classes it is given the first, and in the last image no class: the number `classes`; with augmentation labels,
    zeros. Raises ValueError if it takes none of them, gives another shape, no tensor of floats, or one that depends on
    no parameter; and whatever the network raises.
    """
    x = torch.zeros(len(noise_label), channels, resolution, resolution)
    class_label = torch.zeros(len(noise_label), dtype=torch.long) if classes else None
    if class_label is not None:
        class_label[-1] = classes
    more = {}
    if augmentation_labels:
        inner = network.network if isinstance(network, Adapted) else network
        message = f"its forward takes no parameter {AUGMENTATION_NAMES[0]}: give it one, or use augmentation=null"
        require(_augmentation_parameter(inner) is not None, message)
        more["augmentation"] = torch.zeros(len(noise_label), augmentation_labels)
    with evaluation_mode(network):
        output = output_of(network(x, noise_label, class_label=class_label, **more))
    expected, found = (len(x), out_channels, resolution, resolution), tuple(output.shape)
    require(found == expected, f"for x of shape {tuple(x.shape)} it returns {found}, but {expected} is expected")
    require(output.is_floating_point(), f"it returns {str(output.dtype).removeprefix('torch.')}, not floats")
    require(output.requires_grad, "it cannot be trained: its output has no gradient")


def _kind(output: object) -> str:
    """The class of an output, with the length of a tuple or the names of a mapping."""
    named = f" of {', '.join(map(str, output))}" if isinstance(output, dict) else ""
    return f"{type(output).__name__}{named}"


def takes_class(family: type[nn.Module]) -> bool:
    """Whether networks of a class have a parameter for the class label."""
    _, *parameters = inspect.signature(family.forward).parameters.values()
    return _class_among(parameters) is not None


def _class_parameter(network: nn.Module) -> str | None:
    """The name of the parameter for the class; None if there is none."""
    return _class_among([*inspect.signature(network.forward).parameters.values()])


def _class_among(parameters: Sequence[inspect.Parameter]) -> str | None:
    """The name of the parameter for the class, behind those for x and the noise label; None if there is none."""
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in parameters if p not in placed[:2] and p.kind != p.VAR_POSITIONAL]
    for name in CLASS_NAMES:
        if name in names:
            return name
    third = [p for p in placed[2:3] if p.kind == p.POSITIONAL_OR_KEYWORD and p.default in (p.empty, None)]
    return third[0].name if third and third[0].name not in AUGMENTATION_NAMES else None


def _augmentation_parameter(network: nn.Module) -> str | None:
    """The name of the parameter for the labels of the augmentation; None if there is none."""
    names = inspect.signature(network.forward).parameters
    return next((name for name in AUGMENTATION_NAMES if name in names), None)
