"""Building blocks of a U-Net: embedding of the noise label, residual block, self-attention.

Legend: B images, C channels, H and W pixels, E embedding width, N attention heads, P = H * W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weight and bias set to zero, so that a residual block that ends in it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise label (B,) at wavelengths 2 pi to 2 pi * 10000, then two layers: (B, E).

    Vaswani et al., "Attention Is All You Need" (2017), section 3.5. https://arxiv.org/abs/1706.03762
    """

    frequencies: Tensor

    def __init__(self, waves: int, embedding: int) -> None:
        super().__init__()
        half = waves // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * half, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = noise_label.float()[:, None] * self.frequencies  # (B, waves / 2)
        embedded: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))  # (B, waves) to (B, E)
        return embedded


class Residual(nn.Module):
    """x + conv(norm(conv(x)) * (1 + scale) + shift), where scale and shift are read from the embedding.

    Dhariwal & Nichol, "Diffusion Models Beat GANs" (2021), section 3.1. https://arxiv.org/abs/2105.05233
    """

    def __init__(self, channels: int, out_channels: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, 2 * out_channels)
        self.norm_out = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))  # (B, out, H, W)
        scale, shift = self.scale_shift(embedded)[:, :, None, None].chunk(2, dim=1)  # (B, out, 1, 1) each
        h = (self.norm_out(h) * (1 + scale)).add_(shift)  # (B, out, H, W); addcmul has one product more in its backward
        h = self.conv_out(self.dropout(F.silu(h)))  # (B, out, H, W)
        return torch.add(self.shortcut(x), h)  # (B, out, H, W)


def by_pixel(convolution: nn.Conv2d, pixels: Tensor) -> Tensor:
    """A 1x1 convolution of pixels (B, P, C), whose channels lie side by side as attention reads them."""
    return F.linear(pixels, convolution.weight.flatten(1), convolution.bias)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V for (B, N, P, d) each, by a fused kernel where there is one that serves.

    A CPU's has no derivative in forward mode, and in bfloat16 it is slower than three steps on few pixels.
    """
    few = query.dtype == torch.bfloat16 and query.shape[2] <= 64
    if query.device.type == "cpu" and (few or unpack_dual(query).tangent is not None):  # type: ignore[no-untyped-call]
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """x + self-attention over the pixels of x: (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, channels: int, groups: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, P, C)
        projected = by_pixel(self.query_key_value, pixels)  # (B, P, 3C)
        per_head = projected.view(*projected.shape[:2], 3, self.heads, -1)  # (B, P, 3, N, C / N)
        query, key, value = per_head.permute(2, 0, 3, 1, 4).unbind()  # (B, N, P, C / N) each
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)  # (B, P, C)
        return torch.add(x, by_pixel(self.out, mixed).transpose(1, 2).reshape(x.shape))  # (B, C, H, W)
