"""A sampling step without a network against the schedulers of diffusers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noising.commands.benchmark import Benchmark, Ratio
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.grids import trailing
from noising.diffusion.noise_labels import DiscreteStep
from noising.diffusion.parameterizations import Epsilon
from noising.diffusion.samplers import DDIM, DPMPP2M, Ancestral, Heun, Sampler
from noising.diffusion.schedules import LinearBeta
from noising.diffusion.variances import FixedSmall
from noising.errors import ConfigError
from noising.trained import TrainedRun

__all__ = ["SamplerBenchmark"]


_T = 1000
Path = Callable[[], Iterator[Any]]
"""Begins a path anew; each item is a step taken."""


class _Silent(nn.Module):
    """A network that costs nothing: it has said it all before."""

    def __init__(self, said: Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.said


class SamplerBenchmark(Benchmark):
    """Microseconds a step of the same mathematics on the same grid, drawing the noise and calling the network included.

    What is made once a path, coefficients here and tables there, is timed apart, with the first step.
    """

    columns = ("a step without a network, µs", "diffusers", "noising", "times less")
    needs_checkpoint = False

    def __init__(self, steps: int = 50, repeats: int = 40, resolution: int = 32) -> None:
        """steps: of a path; repeats: paths of each, in turn, of which the median counts; resolution: of 3 channels."""
        if steps < 2 or min(repeats, resolution) < 1:
            raise ValueError("steps must be at least 2, repeats and resolution at least 1")
        self.steps = steps
        self.repeats = repeats
        self.resolution = resolution

    def run(self, trained: TrainedRun | None, device: torch.device, batch_size: int) -> list[Ratio]:
        shape = (batch_size, 3, self.resolution, self.resolution)
        said = torch.randn(shape, device=device)
        grid = partial(trailing, timesteps=_T)
        pairs: list[tuple[str, Sampler, str, dict[str, Any]]] = [
            ("ancestral", Ancestral(self.steps, grid), "DDPMScheduler", {}),
            ("ddim", DDIM(self.steps, grid), "DDIMScheduler", {}),
            (
                "dpmpp_2m",
                DPMPP2M(self.steps, grid, clip=None),
                "DPMSolverMultistepScheduler",
                {"final_sigmas_type": "zero"},
            ),
            ("heun", Heun(self.steps, grid, clip=None), "HeunDiscreteScheduler", {}),
        ]
        ratios = []
        for name, sampler, theirs, options in pairs:
            ours, other = _our_path(sampler, said), _their_path(theirs, options, self.steps, said)
            (first, mine), (their_first, baseline), ratio = self._in_turn(ours, other)
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

    def _in_turn(self, ours: Path, theirs: Path) -> tuple[tuple[float, float], tuple[float, float], float]:
        """Median microseconds of both, up to and with the first step and a later one; the median of paired ratios."""
        pairs = [(self._timed(ours), self._timed(theirs)) for _ in range(self.repeats + 3)][3:]
        mine, other = (
            [statistics.median(column) for column in zip(*times, strict=True)] for times in zip(*pairs, strict=True)
        )
        return (mine[0], mine[1]), (other[0], other[1]), statistics.median(b[1] / a[1] for a, b in pairs)

    def _timed(self, path: Path) -> tuple[float, float]:
        start = _now()
        steps = path()
        next(steps)
        begun = _now()
        for _ in steps:
            pass
        return 1e6 * (begun - start), 1e6 * (_now() - begun) / (self.steps - 1)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _our_path(sampler: Sampler, said: Tensor) -> Path:
    denoiser = Denoiser(_Silent(said), LinearBeta(_T), Epsilon(), FixedSmall(), DiscreteStep(_T))
    return lambda: sampler.path(denoiser, lambda: torch.randn_like(said))


def _their_path(name: str, options: dict[str, Any], steps: int, said: Tensor) -> Path:
    try:
        import diffusers
    except ImportError:
        raise ConfigError("benchmark=sampler compares with diffusers: pip install diffusers") from None
    scheduler = getattr(diffusers, name)(
        _T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing", **options
    )

    network = _Silent(said)

    def path() -> Iterator[Tensor]:
        scheduler.set_timesteps(steps, device=said.device)
        x = torch.randn_like(said)
        for index in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, index), index)
            x = scheduler.step(output, index, x).prev_sample
            yield x

    return path
