"""Drawing images from a denoiser: which image is drawn depends on (seed, index) alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.samplers import Sampler
from noising.randomness import Streams

__all__ = ["draw_images", "draw_path", "frames", "in_evaluation"]


class in_evaluation:  # noqa: N801 - a context manager reads as a phrase
    """The modules in evaluation mode, without gradients and outside autocast; as they were afterwards."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._device = next(module.parameters()).device.type
        self._contexts = (torch.no_grad(), torch.autocast(self._device, enabled=False))

    def __enter__(self) -> None:
        self._training = [(module, module.training) for module in self._module.modules()]
        self._module.eval()
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)  # type: ignore[arg-type]
        for module, training in self._training:
            module.training = training


def draw_images(
    denoiser: Denoiser, sampler: Sampler, shape: Sequence[int], seed: int, indices: Sequence[int]
) -> Tensor:
    """The images of these indices: (B, *shape) on the denoiser's device, kept in [−1, 1]."""
    device = next(denoiser.parameters()).device
    streams = Streams(seed, "sample", indices, device)
    with in_evaluation(denoiser):
        return sampler(denoiser, lambda: streams.normal(shape)).clamp(-1, 1)


def draw_path(
    denoiser: Denoiser,
    sampler: Sampler,
    shape: Sequence[int],
    seed: int,
    indices: Sequence[int],
    frame_count: int = 40,
) -> Tensor:
    """The same images on their way from noise: (frames, B, *shape), the last the images themselves."""
    device = next(denoiser.parameters()).device
    streams = Streams(seed, "sample", indices, device)
    kept = set(frames(sampler.steps, frame_count))
    with in_evaluation(denoiser):
        path = sampler.path(denoiser, lambda: streams.normal(shape))
        return torch.stack([point.x_t.clamp(-1, 1) for step, point in enumerate(path) if step in kept])


def frames(steps: int, count: int) -> list[int]:
    """At most `count` of the steps 0..steps − 1, evenly spread, the last always among them."""
    count = min(steps, count)
    return [(i + 1) * steps // count - 1 for i in range(count)]
