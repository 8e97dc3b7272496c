"""Keyed randomness: every draw is a pure function of a key (seed, purpose, place), independent of earlier draws.

The place is (step, micro-batch, rank) in training and the global sample index in evaluation and sampling. So two
ranks never draw the same noise, a resumed run draws what the uninterrupted one would have drawn, and image 17 is the
same image at any batch size and on any number of devices.

Keys become streams through ``numpy.random.SeedSequence``, whose 128 bits keep them apart. torch's CPU generator takes
only the low 32 bits of a seed, so no noise comes from it.
"""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def _sequence(seed: int, purpose: str, *place: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()), *place))


def _torch_seed(seed: int, purpose: str, *place: int) -> int:
    """A seed for torch's generators, of 63 bits."""
    return int(_sequence(seed, purpose, *place).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """The generator of a key: equal keys give equal streams, different keys independent ones."""
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, *place)))


def normal(shape: Sequence[int], seed: int, purpose: str, *place: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal float32 numbers of a key.

    On CUDA they come from the device's counter-based generator, whose seed has 64 bits; otherwise from the host.
    """
    device = torch.device(device)
    if device.type == "cuda":
        on_device = torch.Generator(device).manual_seed(_torch_seed(seed, purpose, *place))
        return torch.randn(tuple(shape), generator=on_device, device=device)
    drawn = generator(seed, purpose, *place).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(drawn).to(device)


class Streams:
    """A stream of random numbers per image, keyed by its global index, and drawn on the host for any device."""

    def __init__(self, seed: int, purpose: str, indices: Iterable[int], device: torch.device | str = "cpu") -> None:
        self._generators = [generator(seed, purpose, int(index)) for index in indices]
        self._device = torch.device(device)

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int], rows: Iterable[int] | None = None) -> Tensor:
        """The next standard normal numbers of every stream, or of the streams `rows`: (B, *shape), float32."""
        chosen = self._generators if rows is None else [self._generators[row] for row in rows]
        drawn = np.stack([g.standard_normal(tuple(shape), dtype=np.float32) for g in chosen])
        return torch.from_numpy(drawn).to(self._device, non_blocking=True)

    def uniform(self, shape: Sequence[int]) -> np.ndarray:
        """The next numbers in [0, 1) of every stream: (B, *shape), float64, on the host."""
        return np.stack([g.random(tuple(shape)) for g in self._generators])


def seed_global_generators(seed: int, purpose: str, *place: int) -> None:
    """Seed torch's own generators, used by dropout, from a key: the CPU's and that of every CUDA device in use."""
    torch_seed = _torch_seed(seed, purpose, *place)
    torch.default_generator.manual_seed(torch_seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(torch_seed)
