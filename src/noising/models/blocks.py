"""Building blocks of the U-Nets: residual block, self-attention over the pixels, resampling, initialization.

Legend: B images, C channels, H and W pixels, E embedding width, N attention heads, P = H * W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

MakeNorm = Callable[[int], nn.Module]
"""number of channels -> their normalization."""


def group_norm(groups: int, eps: float = 1e-5, channels_per_group: int = 1) -> MakeNorm:
    """A function that makes a group normalization: of that many groups, or fewer of at least `channels_per_group`."""
    return lambda channels: nn.GroupNorm(min(groups, channels // channels_per_group), channels, eps)


Zeroed = TypeVar("Zeroed", nn.Conv2d, nn.Linear)


def zeroed(layer: Zeroed) -> Zeroed:
    """The layer with weight and bias set to zero, so that a residual block that ends in it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _Filter(nn.Module):
    """A low-pass filter, the same along both sides: an even number of taps."""

    kernel: Tensor

    def __init__(self, taps: Sequence[float] = (1, 1)) -> None:
        """taps: [1, 1] is the mean of 2x2 pixels, [1, 3, 3, 1] the filter of NCSN++."""
        super().__init__()
        side = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("kernel", torch.outer(side, side) / side.sum() ** 2, persistent=False)
        self.padding = (len(taps) - 1) // 2
        self.mean = len(taps) == 2 and taps[0] == taps[1]

    def kernel_for(self, x: Tensor) -> Tensor:
        """The kernel of each channel of x: (C, 1, taps, taps), in x's type."""
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)


class Halve(_Filter):
    """Each side halved: filtered, then every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.mean:
            return F.avg_pool2d(x, 2)  # (B, C, H/2, W/2)
        return F.conv2d(x, self.kernel_for(x), stride=2, padding=self.padding, groups=x.shape[1])  # (B, C, H/2, W/2)


class Double(_Filter):
    """Each side doubled: zeros put between the pixels, then filtered; [1, 1] repeats each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.mean:
            return F.interpolate(x, scale_factor=2.0)  # (B, C, 2H, 2W)
        kernel = 4 * self.kernel_for(x)
        return F.conv_transpose2d(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])  # (B, C, 2H, 2W)


class FilteredConvolution(_Filter):
    """Each side halved: filtered, then convolved by 3x3 with stride 2, zeros around the image."""

    def __init__(self, channels: int, out_channels: int, taps: Sequence[float] = (1, 1)) -> None:
        super().__init__(taps)
        self.around = len(taps) // 2
        self.convolution = nn.Conv2d(channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        filtered = F.conv2d(x, self.kernel_for(x), padding=self.around, groups=x.shape[1])  # (B, C, H + 1, W + 1)
        halved: Tensor = self.convolution(filtered)  # (B, out, H/2, W/2)
        return halved


class HalvingConvolution(nn.Conv2d):
    """A 3x3 convolution of stride 2, padded on every side, or with ``corner`` only at the right and the bottom.

    corner: TensorFlow's padding of an even side, which DDPM's published weights were trained with.
    """

    def __init__(self, channels: int, corner: bool = False) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=0 if corner else 1)
        self.corner = corner

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.corner else x)  # (B, C, H/2, W/2)


class Residual(nn.Module):
    """x + conv(norm(conv(x)) * (1 + scale) + shift), where scale and shift are read from the embedding.

    Dhariwal & Nichol, "Diffusion Models Beat GANs" (2021), section 3.1. https://arxiv.org/abs/2105.05233

    Args:
        channels, out_channels: of the input and of the output.
        embedding: width E of the embedding.
        norm: makes the normalization of a number of channels.
        dropout: probability in [0, 1) that a feature is dropped in training.
        scales: False: the embedding is only added, before the second normalization, as in DDPM.
        resample: applied to both paths, before their first convolutions.
        projects: whether the shortcut has a 1x1 convolution; None: where the numbers of channels differ.
        skip_scale: factor of the sum.
        embedding_bias: whether the layer that reads the embedding has a bias.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        norm: MakeNorm,
        dropout: float = 0.0,
        scales: bool = True,
        resample: nn.Module | None = None,
        projects: bool | None = None,
        skip_scale: float = 1.0,
        embedding_bias: bool = True,
    ) -> None:
        super().__init__()
        self.scales, self.skip_scale = scales, skip_scale
        self.norm_in = norm(channels)
        self.resample = resample
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, (2 if scales else 1) * out_channels, bias=embedding_bias)
        self.norm_out = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        projects = channels != out_channels if projects is None else projects
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if projects else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = F.silu(self.norm_in(x))  # (B, C, H, W)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)  # (B, C, H/2, W/2) or (B, C, 2H, 2W) each
        h = self.conv_in(h)  # (B, out, H, W)
        read = self.scale_shift(embedded)[:, :, None, None]  # (B, 2 out or out, 1, 1)
        if self.scales:
            scale, shift = read.chunk(2, dim=1)  # (B, out, 1, 1) each
            # addcmul has one product more in its backward
            h = (self.norm_out(h) * (1 + scale)).add_(shift)  # (B, out, H, W)
        else:
            h = self.norm_out(h + read)  # (B, out, H, W)
        h = self.conv_out(self.dropout(F.silu(h)))  # (B, out, H, W)
        return scaled_sum(self.shortcut(x), h, self.skip_scale)  # (B, out, H, W)


def scaled_sum(x: Tensor, h: Tensor, scale: float) -> Tensor:
    """(x + h) * scale: with √½ the sum of two of variance 1 has variance 1."""
    total = torch.add(x, h)
    return total if scale == 1 else total * scale


def by_pixel(convolution: nn.Conv2d, pixels: Tensor) -> Tensor:
    """A 1x1 convolution of pixels (B, P, C), whose channels lie side by side as attention reads them."""
    return F.linear(pixels, convolution.weight.flatten(1), convolution.bias)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V for (B, N, P, d) each, by a fused kernel where there is one that serves.

    A CPU's has no derivative in forward mode, and in bfloat16 it is slower than three steps on few pixels.
    """
    if torch.compiler.is_compiling():  # the compiler cannot ask for a derivative in forward mode
        return F.scaled_dot_product_attention(query, key, value)
    few = query.dtype == torch.bfloat16 and query.shape[2] <= 64
    if query.device.type == "cpu" and (few or unpack_dual(query).tangent is not None):  # type: ignore[no-untyped-call]
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """x + self-attention over the pixels of x: (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, channels: int, norm: MakeNorm, heads: int, skip_scale: float = 1.0) -> None:
        """norm: makes the normalization of a number of channels; skip_scale: factor of the sum."""
        super().__init__()
        self.heads, self.skip_scale = heads, skip_scale
        self.norm = norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, P, C)
        projected = by_pixel(self.query_key_value, pixels)  # (B, P, 3C)
        per_head = projected.view(*projected.shape[:2], 3, self.heads, -1)  # (B, P, 3, N, C / N)
        query, key, value = per_head.permute(2, 0, 3, 1, 4).unbind()  # (B, N, P, C / N) each
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)  # (B, P, C)
        mixed = by_pixel(self.out, mixed).transpose(1, 2).reshape(x.shape)  # (B, C, H, W)
        return scaled_sum(x, mixed, self.skip_scale)  # (B, C, H, W)


class Recomputed(nn.Module, ABC):
    """A part of a network that, if checkpointed, does not store its features for the gradient, but computes them again.

    checkpointed: whether it does, when a gradient is needed.
    """

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            again: Tensor = checkpoint(self.compute, *inputs, use_reentrant=False)
            return again
        return self.compute(*inputs)

    @abstractmethod
    def compute(self, *inputs: Tensor) -> Tensor:
        """The part's output."""


class Stage(Recomputed):
    """A residual block, followed by self-attention where the level has it.

    joins: on the way up, the block reads the features of the same level on the way down beside its input.
    """

    def __init__(
        self, residual: nn.Module, attention: nn.Module | None = None, joins: bool = False, checkpointed: bool = False
    ) -> None:
        super().__init__(checkpointed)
        self.residual, self.attention = residual, attention
        self.joins = joins

    def compute(self, x: Tensor, embedded: Tensor) -> Tensor:  # type: ignore[override]
        """The stage's output (B, C, h, w)."""
        x = self.residual(x, embedded)  # (B, C, h, w)
        return x if self.attention is None else self.attention(x)  # (B, C, h, w)


@torch.no_grad()
def initialize_by_glorot(network: nn.Module, last: nn.Conv2d, attention: float = 1.0) -> None:
    """Give all convolutions and linear layers weights uniform with variance 2/(fan in + fan out), and biases of zero.

    last: the layer that ends the network; it and those that end a block start at 1e-5 of their weights. attention:
    factor of the variance of the query, key and value matrices, each for itself. Ho et al. (2020) and Song et al.
    (2021) initialize so.
    """
    _draw_layers(network, nn.init.xavier_uniform_)
    last.weight.mul_(1e-5)
    for block in network.modules():
        if isinstance(block, Residual):
            block.conv_out.weight.mul_(1e-5)
        elif isinstance(block, Attention):
            block.out.weight.mul_(1e-5)
            block.query_key_value.weight.mul_((2 * attention) ** 0.5)  # three matrices in one have fan out 3 C, not C


@torch.no_grad()
def initialize_by_lecun(network: nn.Module, last: nn.Conv2d) -> None:
    """Give all convolutions and linear layers truncated normal weights of variance 1/(fan in), and biases of zero.

    Zero are last, which ends the network, the layers that end a block, and those that read the embedding in one. Flax
    initializes so by default, and Kingma et al. (2021) choose the zeros.
    """

    def draw(weight: Tensor) -> Tensor:
        # within two of its standard deviations a normal number has 0.8796 of it
        std = weight[0].numel() ** -0.5 / 0.87962566103423978
        return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    _draw_layers(network, draw)
    last.weight.zero_()
    for block in network.modules():
        if isinstance(block, Residual):
            block.scale_shift.weight.zero_()
            block.conv_out.weight.zero_()
        elif isinstance(block, Attention):
            block.out.weight.zero_()


def _draw_layers(network: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    """Draw the weights of all convolutions and linear layers anew; their biases become zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
