"""A sampling step without a network against the schedulers of diffusers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noising.commands.benchmark import Benchmark, Ratio, now
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.grids import trailing
from noising.diffusion.noise_labels import DiscreteStep
from noising.diffusion.parameterizations import Epsilon
from noising.diffusion.samplers import DDIM, DPMPP2M, Ancestral, Heun, Sampler
from noising.diffusion.schedules import LinearBeta
from noising.diffusion.variances import FixedSmall
from noising.errors import ConfigError
from noising.trained import TrainedRun

TIMESTEPS = 1000
NewPath = Callable[[], Iterator[Any]]
"""Begins a path anew; each item is a step taken."""


class ConstantNetwork(nn.Module):
    """A network that costs nothing: its output is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.output


@dataclass
class SamplerBenchmark(Benchmark):
    """Microseconds a step of equal samplers on equal grids, drawing the noise and calling the network included.

    The coefficients, made once a path, are timed apart, with the first step.
    """

    columns = ("time per step without network, µs", "diffusers", "noising", "times less")
    needs_checkpoint = False

    steps: int = 50
    repeats: int = 40
    """Paths of each, by turns, of which the median counts."""
    resolution: int = 32
    """Side of the images, of 3 channels."""

    def __post_init__(self) -> None:
        if self.steps < 2 or min(self.repeats, self.resolution) < 1:
            raise ValueError("steps must be at least 2, repeats and resolution at least 1")

    def run(self, trained: TrainedRun | None, device: torch.device, batch_size: int) -> list[Ratio]:
        shape = (batch_size, 3, self.resolution, self.resolution)
        output = torch.randn(shape, device=device)
        parts = (LinearBeta(TIMESTEPS), Epsilon(), FixedSmall(), DiscreteStep(TIMESTEPS))
        denoiser = Denoiser(ConstantNetwork(output), *parts)
        grid = partial(trailing, timesteps=TIMESTEPS)
        pairs: list[tuple[str, Sampler, str, dict[str, Any]]] = [
            ("ancestral", Ancestral(self.steps, grid), "DDPMScheduler", {}),
            ("ddim", DDIM(self.steps, grid), "DDIMScheduler", {}),
            ("dpmpp_2m", DPMPP2M(self.steps, grid, None), "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
            ("heun", Heun(self.steps, grid, clip=None), "HeunDiscreteScheduler", {}),
        ]
        ratios = []
        for name, sampler, theirs, options in pairs:
            ours = partial(sampler.path, denoiser, partial(torch.randn_like, output))
            paths = (ours, _their_path(theirs, options, self.steps, output))
            # by turns: medians of each, and of the ratios of neighbours; the first three warm up
            times = np.array([[self._timed(path, device) for path in paths] for _ in range(self.repeats + 3)])[3:]
            (first, mine), (their_first, baseline) = np.median(times, axis=0).tolist()
            ratio = float(np.median(times[:, 1, 1] / times[:, 0, 1]))
            card = {
                "ours_us": mine,
                "theirs_us": baseline,
                "ours_first_us": first,
                "theirs_first_us": their_first,
                "steps": self.steps,
                "shape": list(shape),
                "device": str(device),
                "threads": torch.get_num_threads(),
            }
            ratios.append(Ratio(f"sampler_{name}", f"{name}, {theirs}", f"{baseline:.1f}", f"{mine:.1f}", ratio, card))
        return ratios

    def _timed(self, path: NewPath, device: torch.device) -> tuple[float, float]:
        """Microseconds until the first step is taken, and of each later step."""
        start = now(device)
        steps = path()
        next(steps)
        begun = now(device)
        for _ in steps:
            pass
        return 1e6 * (begun - start), 1e6 * (now(device) - begun) / (self.steps - 1)


def _their_path(name: str, options: dict[str, Any], steps: int, output: Tensor) -> NewPath:
    try:
        import diffusers
    except ImportError:
        raise ConfigError("benchmark=sampler compares with diffusers: pip install diffusers") from None
    scheduler = getattr(diffusers, name)(
        TIMESTEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", **options
    )
    network = ConstantNetwork(output)

    def path() -> Iterator[Tensor]:
        scheduler.set_timesteps(steps, device=output.device)
        x = torch.randn_like(output)
        for index in scheduler.timesteps:
            predicted = network(scheduler.scale_model_input(x, index), index)
            x = scheduler.step(predicted, index, x).prev_sample
            yield x

    return path
