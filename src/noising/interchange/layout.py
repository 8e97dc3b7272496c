"""A layout of weights: the names of another project's file for one of the networks here, and how each is stored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noising.errors import require
from noising.interchange import tensor_maps
from noising.interchange.tensor_maps import Entry

Shapes = Mapping[str, Sequence[int]]
"""The tensors of a file: name -> shape."""


class Described(NamedTuple):
    """The network that the names and shapes of a file describe.

    family, options: its class here and the arguments of its constructor; layout: makes the layout for the network.
    """

    family: type[nn.Module]
    options: dict[str, Any]
    layout: Callable[[Any], "Layout"]


class HeldSchedule(NamedTuple):
    """The learned schedule that a file holds beside the network.

    family, options: its class here and the arguments of its constructor; weights: its state dict.
    """

    family: type[nn.Module]
    options: dict[str, Any]
    weights: dict[str, Tensor]


class Layout(ABC):
    """The names and the storage of one project's weights, for one of the networks here.

    A subclass gives its `entries`, and reads from a file's names and shapes which network they are of (`describe`).
    """

    families: tuple[type[nn.Module], ...]
    """The classes of the networks that it is of."""
    unused: tuple[str, ...] = ()
    """Last names of tensors that a file may hold beside the network's."""
    image_scale: float = 1.0
    """Factor by which its code scales images in [−1, 1] before noise is added."""
    file: str = "model.safetensors"
    """The name of a file that is written."""
    schedule: str | None = None
    """The beginning of the names of a learned schedule's tensors; None if files hold none."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @classmethod
    @abstractmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        """Whether tensors of these names are in this layout."""

    @classmethod
    @abstractmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """The network of complete names and shapes; as `describe`."""

    @classmethod
    def describe(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """The network of a file's names and shapes; facts: what they do not tell, each with a default.

        resolution: of the images, where the names do not tell it. Raises ValueError for names and shapes that are of no
        complete network.
        """
        try:
            return cls.network_of(shapes, resolution, **facts)
        except (LookupError, StopIteration, ZeroDivisionError) as error:
            raise ValueError(f"its names and shapes are of no complete network ({error!r})") from error

    @classmethod
    def of(cls, shapes: Shapes, resolution: int = 0, **facts: Any) -> "Layout":
        """The layout with a new network, as `describe` has it."""
        family, options, layout = cls.describe(shapes, resolution, **facts)
        return layout(family(**options))

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "Layout":
        """The layout of a network that is to be written; options: the arguments that it was made with.

        Raises ValueError for a network that the layout has no place for.
        """
        cls.require_family(network)
        return cls(network)

    @classmethod
    def require_family(cls, network: nn.Module) -> None:
        """Refuse a network of a class that the layout is not of: ValueError."""
        titles = " or ".join(family.__name__ for family in cls.families)
        fits = isinstance(network, cls.families)
        require(fits, f"this layout is of {titles}, the run's network is a {type(network).__name__}")

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """An entry for each tensor of the network's state dict."""

    @classmethod
    def schedule_of(cls, theirs: Mapping[str, Tensor]) -> HeldSchedule | None:
        """The learned schedule that a file holds, if any. Raises ValueError for one that is of no kind here."""
        return None

    @classmethod
    def with_schedule(cls, schedule: nn.Module) -> dict[str, Tensor]:
        """The tensors of a run's schedule, where the layout holds it."""
        return {}

    def constants(self) -> dict[str, Tensor]:
        """Tensors that the other project stores and that hold nothing learned."""
        return {}

    def read(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's state dict of one in this layout, float32. Raises ValueError where names or shapes differ."""
        here = {name: tensor.shape for name, tensor in self.network.state_dict().items()}
        with torch.device("meta"):
            expected = self.write({name: torch.empty(shape) for name, shape in here.items()})
        unused = {name for name in theirs if name.rpartition(".")[2] in self.unused}
        if self.schedule is not None:
            unused |= {name for name in theirs if name.startswith(self.schedule)}
        shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items() if name not in unused}
        if missing := sorted(expected.keys() - shapes.keys()):
            raise ValueError(f"the file lacks {missing[0]}{_more(missing)}")
        if unknown := sorted(shapes.keys() - expected.keys()):
            raise ValueError(f"the network has no place for {unknown[0]}{_more(unknown)} of the file")
        for name, tensor in expected.items():
            if shapes[name] != tuple(tensor.shape):
                raise ValueError(f"{name} is {shapes[name]} in the file, {tuple(tensor.shape)} in the network")
        return tensor_maps.read(self.entries(), theirs, here)

    def write(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict in this layout of the network's own."""
        return {**tensor_maps.write(self.entries(), ours), **self.constants()}


def numbered(names: Shapes, prefix: str) -> int:
    """The number of names that are numbered behind a prefix: one more than the highest number; 0 for none."""
    found = [name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)]
    return 1 + max((int(number) for number in found if number.isdecimal()), default=-1)


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
