"""Drawing images from a denoiser: image i depends on (seed, i) alone, not on its batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.networks import evaluation_mode
from noising.diffusion.samplers import PathPoint, Sampler
from noising.errors import require
from noising.randomness import Streams


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """A context with the module in evaluation mode, without gradients and autocast; restores its mode afterwards."""
    device = next(module.parameters()).device
    with evaluation_mode(module), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def class_labels_for(
    indices: Sequence[int], classes: int, only: int | None = None, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Class labels to sample image i with: `only`, or class i mod `classes`; (B,) int64, None without classes."""
    if not classes:
        return None
    return torch.tensor([index % classes if only is None else only for index in indices], device=device)


def draw_images(
    denoiser: Denoiser,
    sampler: Sampler,
    shape: Sequence[int],
    seed: int,
    indices: Sequence[int],
    class_label: Tensor | None = None,
    on_step: Callable[[int, PathPoint], None] | None = None,
) -> Tensor:
    """The images of these indices: (B, *shape) on the denoiser's device, clamped to [−1, 1].

    on_step: called with the number of each step, from 0, and the state after it.
    """
    device = next(denoiser.parameters()).device
    streams = Streams(seed, "sample", indices, device)
    with in_evaluation(denoiser):
        for step, point in enumerate(sampler.path(denoiser, lambda: streams.normal(shape), class_label)):
            if on_step is not None:
                on_step(step, point)
        return point.x_t.clamp(-1, 1)


def require_drawing(sampler: Sampler, denoiser: Denoiser, shape: Sequence[int], class_label: Tensor | None) -> None:
    """Take the first step of a sampler with one image of zeros.

    Raises ValueError if it is no state of an image, and whatever the sampler raises. class_label: (1,) or None.
    """
    zeros = torch.zeros(1, *shape, device=next(denoiser.parameters()).device)
    with in_evaluation(denoiser):
        point = next(iter(sampler.path(denoiser, lambda: zeros, class_label)), None)
    require(point is not None, "path yields nothing: an nz.PathPoint is expected after each step")
    require(isinstance(point, PathPoint), f"path yields a {type(point).__name__}, where an nz.PathPoint is expected")
    for name, image in zip(PathPoint._fields, point or (), strict=False):
        found = tuple(getattr(image, "shape", ()))
        require(
            found == tuple(zeros.shape), f"path yields {name} of shape {found}, where {tuple(zeros.shape)} is expected"
        )


def frames(steps: int, count: int) -> list[int]:
    """At most `count` of the steps 0..steps − 1, evenly spaced, including the last."""
    count = min(steps, count)
    return [(i + 1) * steps // count - 1 for i in range(count)]


class PathFrames:
    """Records x_t and x̂ of a batch's first images after some of the steps."""

    def __init__(self, steps: int, images: int, count: int = 40) -> None:
        self.steps = frames(steps, count)
        self.images = images
        self._frames: list[Tensor] = []

    def __call__(self, step: int, point: PathPoint) -> None:
        if step in self.steps:
            self._frames.append(torch.stack([x[: self.images].clamp(-1, 1) for x in point]))

    @property
    def tensor(self) -> Tensor:
        """(frames, 2, B, C, H, W) in [−1, 1]: x_t after a step, and the x̂ that led to it."""
        return torch.stack(self._frames)
