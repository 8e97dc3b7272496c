"""The words of `randomness.philox` by one kernel on CUDA, for versions of torch that have none."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(out, first, key, blocks, total, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # of a counter: row · blocks + block
    inside = index < total
    counter = tl.load(first + index // blocks, mask=inside, other=0) + index % blocks
    low, high = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(tl.load(key), low, high, low * 0, low * 0)
    to = out + 4 * index
    tl.store(to, (a & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08, mask=inside)  # 2^-24
    tl.store(to + 1, (b & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08, mask=inside)
    tl.store(to + 2, (c & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08, mask=inside)
    tl.store(to + 3, (d & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08, mask=inside)


def triton_uniform(key: int, first: Tensor, blocks: int) -> Tensor:
    """The numbers of `randomness.plain_uniform`."""
    total = len(first) * blocks
    out = torch.empty(len(first), 4 * blocks, device=first.device)
    signed = torch.full((1,), key - (key >> 63 << 64), dtype=torch.int64, device=first.device)
    _kernel[(triton.cdiv(total, _BLOCK),)](out, first, signed, blocks, total, BLOCK=_BLOCK)
    return out
