"""Keyed randomness: every draw is a pure function of a key (seed, purpose, place), never of what was drawn before.

The place is (step, micro-batch, rank) in training and the global sample index in evaluation and sampling. So two
ranks never draw the same noise, a resumed run draws what the uninterrupted one would have drawn, and image 17 is the
same image at any batch size and on any number of devices.

Keys become streams through ``numpy.random.SeedSequence``, whose 128 bits keep them apart; torch's CPU generator takes
only the low 32 bits of a seed, so it never stands behind noise here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Streams", "generator", "normal", "seed_global_generators"]


def _sequence(seed: int, purpose: str, *place: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()), *place))


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """The generator of one key. Equal keys give equal streams, different keys independent ones."""
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, *place)))


def normal(shape: Sequence[int], seed: int, purpose: str, *place: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal float32 numbers of one key, drawn where they are needed.

    On CUDA the draw is made by the device's own counter-based generator, whose seed has 64 bits; elsewhere on the host.
    """
    device = torch.device(device)
    if device.type == "cuda":
        word = int(_sequence(seed, purpose, *place).generate_state(1, np.uint64)[0] >> np.uint64(1))
        on_device = torch.Generator(device).manual_seed(word)
        return torch.randn(tuple(shape), generator=on_device, device=device)
    drawn = generator(seed, purpose, *place).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(drawn).to(device)


class Streams:
    """One stream of normal numbers per image, keyed by the image's global index.

    Drawn on the host, so that the images do not depend on the device either.
    """

    def __init__(self, seed: int, purpose: str, indices: Iterable[int], device: torch.device | str = "cpu") -> None:
        self._generators = [generator(seed, purpose, int(index)) for index in indices]
        self._device = torch.device(device)

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int], rows: Iterable[int] | None = None) -> Tensor:
        """The next standard normal numbers of every stream, or of those of `rows` in turn: (B, *shape), float32."""
        chosen = self._generators if rows is None else [self._generators[row] for row in rows]
        drawn = np.stack([g.standard_normal(tuple(shape), dtype=np.float32) for g in chosen])
        return torch.from_numpy(drawn).to(self._device, non_blocking=True)

    def uniform(self, shape: Sequence[int]) -> np.ndarray:
        """The next numbers in [0, 1) of every stream: (B, *shape), float64, on the host."""
        return np.stack([g.random(tuple(shape)) for g in self._generators])


def seed_global_generators(seed: int, purpose: str, *place: int) -> None:
    """Set torch's own generators (dropout, for one) from a key; CPU and every CUDA device in use."""
    word = int(_sequence(seed, purpose, *place).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(word)
