"""Keyed randomness: every draw is a pure function of a key (seed, purpose, place), independent of earlier draws.

The place is the optimizer step and an image's position in its global batch in training, and the global sample index in
evaluation and sampling. So no two images meet the same noise, a resumed run draws what the uninterrupted one would have
drawn, training is the same on any number of devices, and image 17 is the same image at any batch size.

Numbers of images are the words of the counter-based generator Philox4x32-10, made in bulk on the device that uses
them: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). https://doi.org/10.1145/2063384.2063405
Few numbers for a whole batch come from numpy's generators on the host. torch's own generators give no noise: the CPU's
takes only the low 32 bits of a seed, and on CUDA a number depends on how many are drawn.
"""

import hashlib
import logging
import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

NOISE = "Philox4x32-10 by position"
"""The name of what draws the noise, for cards: numbers of another version's are others."""
_WORD = 0xFFFFFFFF
_MULTIPLIERS, _INCREMENTS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_ROW = 32  # bits of the counter within a stream: 2^32 blocks of 4 words


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """The host's generator of a key: equal keys give equal streams, different keys independent ones."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()), *place))
    return np.random.Generator(np.random.Philox(sequence))


def philox(key: int, counter: Tensor, upper: Tensor | None = None) -> Tensor:
    """Philox4x32-10: the words (..., 4) of a key of 64 bits at int64 counters (...), each in [0, 2³²), int64.

    upper: each of the two upper words of the counter, default 0.
    """
    upper = torch.zeros_like(counter) if upper is None else upper.expand_as(counter)
    words = [counter & _WORD, counter >> 32 & _WORD, upper, upper]
    keys = [key & _WORD, key >> 32 & _WORD]
    for _ in range(_ROUNDS):
        products = [multiplier * words[place] for multiplier, place in zip(_MULTIPLIERS, (0, 2), strict=True)]
        low, high = [p & _WORD for p in products], [p >> 32 & _WORD for p in products]
        words = [high[1] ^ words[1] ^ keys[0], low[1], high[0] ^ words[3] ^ keys[1], low[0]]
        keys = [(k + increment) & _WORD for k, increment in zip(keys, _INCREMENTS, strict=True)]
    return torch.stack(words, -1)


def plain_uniform(key: int, first: Tensor, blocks: int) -> Tensor:
    """Numbers in [0, 1) from the low 24 bits of each word of `blocks` counters from each of `first` (B,): float32."""
    counter = first[:, None] + torch.arange(blocks, device=first.device)
    return (philox(key, counter) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).flatten(1)


def fused_uniform(key: int, first: Tensor, blocks: int) -> Tensor:
    """Make the numbers of `plain_uniform` by one kernel of torch's: 8 to 16 times faster, and not public yet."""
    keys = first.new_empty(len(first), 1, 2)
    keys[..., 0] = key - (key >> 63 << 64)  # of the same 64 bits
    keys[:, 0, 1] = first
    out = torch.empty(len(first), 4 * blocks, device=first.device)
    return torch._philox_uniform_(out, keys.view(torch.uint64))


def _triton_uniform(key: int, first: Tensor, blocks: int) -> Tensor:
    from noising.philox_kernel import triton_uniform  # here: Triton is needed on CUDA alone

    uniform: Tensor = triton_uniform(key, first, blocks)
    return uniform


@lru_cache
def _uniform_on(kind: str) -> Callable[[int, Tensor, int], Tensor]:
    """The fastest function for a type of device that gives the plain numbers with this version of torch."""
    first, key = torch.tensor([0, 5 << _ROW], device=kind), 0xFEDCBA9876543210
    kernels: list[Callable[[int, Tensor, int], Tensor]] = [fused_uniform]
    if kind == "cuda":
        kernels.append(_triton_uniform)
    for make in kernels:
        try:
            if torch.equal(make(key, first, 2), plain_uniform(key, first, 2)):
                return make
        except Exception as error:
            log.debug("%s does not serve: %s", make, error)
    return plain_uniform


def _digest(seed: int, purpose: str, *place: int) -> int:
    """64 bits of a key."""
    return int.from_bytes(hashlib.blake2b(repr((seed, purpose, *place)).encode(), digest_size=8).digest(), "little")


class Streams:
    """Streams of random numbers, one an image, made on a device and the same on every one (normals: to rounding).

    Stream i depends on (seed, purpose, place) and `indices[i]` alone; each draw takes its next numbers.
    """

    def __init__(
        self, seed: int, purpose: str, indices: Iterable[int], device: torch.device | str = "cpu", *place: int
    ) -> None:
        """indices: in [0, 2³¹), of images in a set, of samples, or positions in the global batch of a step."""
        self._key = _digest(seed, purpose, *place)
        if isinstance(indices, range):  # made on the device
            index = torch.arange(indices.start, indices.stop, indices.step, device=device)
        else:
            index = torch.tensor(list(indices), dtype=torch.int64).to(device, non_blocking=True)
        self._next = index << _ROW  # the counter of each stream's next block

    def __len__(self) -> int:
        return len(self._next)

    def _blocks(self, blocks: int, rows: Tensor | None) -> Tensor:
        """Uniform numbers (B, 4 · blocks) of the streams `rows`, which go on by so many blocks."""
        if rows is None:
            first, self._next = self._next, self._next + blocks
        else:
            turns = _turns(rows).to(self._next.device, non_blocking=True)
            rows = rows.to(self._next.device, non_blocking=True)
            first = self._next[rows] + blocks * turns
            self._next = self._next.index_add(0, rows, torch.full_like(rows, blocks))
        return _uniform_on(first.device.type)(self._key, first, blocks)

    def uniform(self, shape: Sequence[int], rows: Tensor | None = None) -> Tensor:
        """The next numbers in [0, 1) of every stream, or of the streams `rows`: (B, *shape), float32, of 24 bits."""
        count = math.prod(shape)
        return self._blocks(-(-count // 4), rows)[:, :count].reshape(-1, *shape)

    def normal(self, shape: Sequence[int], rows: Tensor | None = None) -> Tensor:
        """The next standard normal numbers of every stream, or of the streams `rows`: (B, *shape), float32.

        rows: (B,) int64 on the host; a stream that comes twice gives two draws. Numbers are at most 5.8. Box & Muller,
        "A note on the generation of random normal deviates" (1958). https://doi.org/10.1214/aoms/1177706645
        """
        count = math.prod(shape)
        uniform = self._blocks(-(-count // 4), rows)
        radius, angle = uniform.chunk(2, 1)
        radius.neg_().add_(1).log_().mul_(-2).sqrt_()  # 1 − u, since u may be 0
        cosine = angle.mul_(2 * math.pi).cos()
        angle.sin_().mul_(radius)
        radius.mul_(cosine)
        return uniform[:, :count].reshape(-1, *shape)


def _turns(rows: Tensor) -> Tensor:
    """Count how often each row has come before in `rows`: (B,)."""
    ordered, order = rows.sort(stable=True)
    turns = torch.empty_like(rows)
    turns[order] = torch.arange(len(rows)) - torch.searchsorted(ordered, ordered)
    return turns


def drops_out(layer: nn.Module) -> bool:
    """Whether a layer of torch's draws from the global generators in training, as dropout does."""
    if not type(layer).__module__.startswith("torch.nn."):
        return False
    rates = (getattr(layer, name, 0) for name in ("p", "dropout"))
    return isinstance(layer, nn.RReLU) or any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def may_draw(layer: nn.Module) -> bool:
    """Whether a layer may draw from the global generators in training: it drops out, or is neither ours nor torch's."""
    return drops_out(layer) or type(layer).__module__.partition(".")[0] not in ("noising", "torch")


def seed_global_generators(seed: int, purpose: str, *place: int) -> None:
    """Seed torch's own generators, used by dropout, from a key: the CPU's and that of every CUDA device in use."""
    torch_seed = _digest(seed, purpose, *place) >> 1
    torch.default_generator.manual_seed(torch_seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(torch_seed)


@contextmanager
def generators_as_before() -> Iterator[None]:
    """Within it the global generators of Python, numpy and torch may be drawn from; afterwards they are as before."""
    python, arrays, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)
