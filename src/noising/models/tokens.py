"""Images as tokens, and what transformers do with them: patches, positions, attention, modulation by an embedding.

Legend: B images, C channels, H and W the image's sides, p a patch's side, P = (H / p) (W / p) patches, D token width,
N attention heads, T tokens.
"""

import math

import torch
from torch import Tensor, nn

from noising.models.blocks import attend


def as_tokens(features: Tensor) -> Tensor:
    """Features of patches in rows and columns, (B, D, H / p, W / p), as tokens, row by row: (B, P, D)."""
    return features.flatten(2).transpose(1, 2)


def as_image(tokens: Tensor, patch: int) -> Tensor:
    """Tokens (B, P, p p C), each the pixels of a square patch row by row, as square images: (B, C, H, W)."""
    side = math.isqrt(tokens.shape[1])
    pixels = tokens.reshape(len(tokens), side, side, patch, patch, -1)  # (B, H / p, W / p, p, p, C)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C, H, W)


def sinusoidal_positions(side: int, width: int) -> Tensor:
    """A fixed table of positions: (side², width), rows of the patches row by row.

    The first half of the width tells the column and the second the row, each by sines, then cosines, at wavelengths 2π
    to 2π · 10,000. Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023). https://arxiv.org/abs/2212.09748
    """
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, width / 4)
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    column, row = one.repeat(side, 1), one.repeat_interleave(side, dim=0)  # (side², width / 2) each
    return torch.cat([column, row], dim=1).float()


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens (B, T, D) scaled by 1 + scale and shifted, the same for all of an image: shift and scale are (B, D)."""
    return torch.addcmul(shift[:, None], tokens, 1 + scale[:, None])


class TokenAttention(nn.Module):
    """Self-attention over tokens: (B, T, D) to (B, T, D), without the sum."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        """bias: whether the matrix of query, key and value has one."""
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        projected = self.query_key_value(tokens)  # (B, T, 3 D)
        per_head = projected.view(*tokens.shape[:2], 3, self.heads, -1)  # (B, T, 3, N, D / N)
        query, key, value = per_head.permute(2, 0, 3, 1, 4).unbind()  # (B, N, T, D / N) each
        mixed: Tensor = self.out(attend(query, key, value).transpose(1, 2).flatten(2))  # (B, T, D)
        return mixed
