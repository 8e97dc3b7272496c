"""Images as tokens, and what transformers do with them: patches, positions, attention, modulation by an embedding.

Legend: B images, C channels, H and W the image's sides, p a patch's side, P = (H / p) (W / p) patches, D token width,
N attention heads, T tokens, M width within a feed-forward layer.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.blocks import MakeNorm, Recomputed, attend
from noising.models.embeddings import ClassEmbedding, NoiseEmbedding
from noising.models.u_shape import MAX_BLOCKS, MAX_WIDTH


def require_token_sizes(resolution: int, classes: int, patch: int, width: int, depth: int, heads: int) -> None:
    """Refuse sizes that no transformer of an image's patches can have: ValueError, whose message names the number."""
    for name, number in {"patch": patch, "width": width, "depth": depth, "heads": heads}.items():
        require(number >= 1, f"{name} must be at least 1, got {number}")
    require(width <= MAX_WIDTH, f"width must be at most {MAX_WIDTH}, got {width}")
    require(depth <= MAX_BLOCKS, f"depth must be at most {MAX_BLOCKS}, got {depth}")
    require(classes >= 0, f"classes must be at least 0 (0: no classes), got {classes}")
    require(width % heads == 0, f"width must be a multiple of heads={heads}, got {width}")
    fits = resolution >= 1 and resolution % patch == 0
    require(fits, f"patch must divide data.resolution={resolution}, got {patch}")


def inner_width(mlp_ratio: float, width: int) -> int:
    """The width within a feed-forward layer: mlp_ratio token widths. Raises ValueError if it can be none."""
    fits = 1 <= mlp_ratio * width <= MAX_WIDTH
    require(fits, f"mlp_ratio must be at least 1/{width} and at most {MAX_WIDTH // width}, got {mlp_ratio}")
    return round(mlp_ratio * width)


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


class Patches(nn.Conv2d):
    """The square patches of an image, each a token: (B, C, H, W) to (B, P, D)."""

    def __init__(self, channels: int, width: int, patch: int, bias: bool = True) -> None:
        super().__init__(channels, width, patch, stride=patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return as_tokens(super().forward(x))  # (B, D, H / p, W / p) to (B, P, D)


class Rotation(NamedTuple):
    """The angle by which each pair of neighbouring numbers of a query or a key is turned: its cosine and its sine.

    Both are (T, D / 2N).
    """

    cosine: Tensor
    sine: Tensor

    @classmethod
    def of_places(cls, side: int, width: int, ahead: int = 0) -> "Rotation":
        """The rotation of square images of patches, and of tokens ahead of them, which are not turned.

        The first half of a head's width is turned by the row and the second by the column, at wavelengths 2π to
        2π · 10,000, so that a product of a query and a key depends on their distance. Su et al., "RoFormer: Enhanced
        Transformer with Rotary Position Embedding" (2021), section 3.4. https://arxiv.org/abs/2104.09864
        """
        frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, width / 4)
        of_patches = torch.cat([angles.repeat_interleave(side, dim=0), angles.repeat(side, 1)], dim=1)  # row, column
        every = torch.cat([torch.zeros(ahead, 2 * len(frequencies), dtype=torch.float64), of_patches])  # (T, width / 2)
        return cls(every.cos().float(), every.sin().float())

    def __call__(self, vectors: Tensor) -> Tensor:
        """Vectors (B, N, T, D / N), turned."""
        first, second = vectors.reshape(*vectors.shape[:3], -1, 2).unbind(4)  # (B, N, T, D / 2N) each
        turned = first * self.cosine - second * self.sine, second * self.cosine + first * self.sine
        return torch.stack(turned, dim=4).flatten(3)  # (B, N, T, D / N)


class TokenAttention(nn.Module):
    """Self-attention over tokens: (B, T, D) to (B, T, D), without the sum."""

    def __init__(
        self, width: int, heads: int, bias: bool = True, norm: MakeNorm | None = None, dropout: float = 0.0
    ) -> None:
        """bias: whether the matrix of query, key and value has one; norm: of queries and keys, within each head."""
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.query_norm = self.key_norm = None
        if norm is not None:
            self.query_norm, self.key_norm = norm(width // heads), norm(width // heads)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        projected = self.query_key_value(tokens)  # (B, T, 3 D)
        per_head = projected.view(*tokens.shape[:2], 3, self.heads, -1)  # (B, T, 3, N, D / N)
        query, key, value = per_head.permute(2, 0, 3, 1, 4).unbind()  # (B, N, T, D / N) each
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        attended = attend(query.to(value.dtype), key.to(value.dtype), value)  # (B, N, T, D / N)
        mixed: Tensor = self.dropout(self.out(attended.transpose(1, 2).flatten(2)))  # (B, T, D)
        return mixed


class FeedForward(nn.Module):
    """Two layers and a GELU between them, for each token: (B, T, D) to (B, T, D)."""

    def __init__(self, width: int, inner: int, tanh: bool = False) -> None:
        """inner: the width M between them; tanh: the GELU by its approximation with a tangent."""
        super().__init__()
        self.approximate = "tanh" if tanh else "none"
        self.layer_in = nn.Linear(width, inner)
        self.layer_out = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        inner = F.gelu(self.layer_in(tokens), approximate=self.approximate)  # (B, T, M)
        out: Tensor = self.layer_out(inner)  # (B, T, D)
        return out


class GatedFeedForward(nn.Module):
    """Two layers for each token, half of the first gating its other half: (B, T, D) to (B, T, D).

    Shazeer, "GLU Variants Improve Transformer" (2020): SwiGLU. https://arxiv.org/abs/2002.05202
    """

    def __init__(self, width: int, inner: int, dropout: float = 0.0) -> None:
        """inner: the width M between them; dropout: probability that one of its numbers is dropped in training."""
        super().__init__()
        self.layer_in = nn.Linear(width, 2 * inner)
        self.dropout = nn.Dropout(dropout)
        self.layer_out = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.layer_in(tokens).chunk(2, dim=2)  # (B, T, M) each
        out: Tensor = self.layer_out(self.dropout(F.silu(gate) * value))  # (B, T, D)
        return out


class ModulatedBlock(Recomputed):
    """x + gate · part(norm(x) (1 + scale) + shift), by self-attention and then by a feed-forward layer.

    Shift, scale and gate of either are read from the embedding. Peebles & Xie (2023), section 3.2, adaLN-Zero.
    """

    def __init__(
        self, width: int, norm: MakeNorm, attention: nn.Module, feed_forward: nn.Module, checkpointed: bool = False
    ) -> None:
        """norm: makes the normalization of a width."""
        super().__init__(checkpointed)
        self.attention_norm, self.attention = norm(width), attention
        self.feed_forward_norm, self.feed_forward = norm(width), feed_forward
        self.modulation = nn.Linear(width, 6 * width)

    def compute(self, tokens: Tensor, embedded: Tensor, *rotation: Rotation) -> Tensor:  # type: ignore[override]
        """The block's output (B, T, D); embedded: (B, D), behind its activation; rotation: of the attention, if any."""
        read = self.modulation(embedded).chunk(6, dim=1)  # (B, D) each
        for norm, part, (shift, scale, gate), others in (
            (self.attention_norm, self.attention, read[:3], rotation),
            (self.feed_forward_norm, self.feed_forward, read[3:], ()),
        ):
            read_by = modulated(norm(tokens), shift, scale)  # (B, T, D)
            tokens = torch.addcmul(tokens, gate[:, None], part(read_by, *others))  # (B, T, D)
        return tokens


class ModulatedPixels(nn.Module):
    """Tokens to the pixels of their patches, modulated by the embedding: (B, P, D) to (B, P, outputs)."""

    def __init__(self, width: int, norm: MakeNorm, outputs: int) -> None:
        """norm: makes the normalization of a width; outputs: p p C."""
        super().__init__()
        self.norm = norm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        shift, scale = self.modulation(embedded).chunk(2, dim=1)  # (B, D) each
        pixels: Tensor = self.out(modulated(self.norm(tokens), shift, scale))  # (B, P, outputs)
        return pixels


@torch.no_grad()
def initialize_modulated(network: nn.Module) -> None:
    """Give a network of `ModulatedBlock` the initial weights of DiT, whose blocks are the identity and output zero.

    Matrices are uniform with variance 2/(fan in + fan out), those of the embeddings normal with deviation .02, all
    modulations and the last layer zero, and all biases zero.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | Patches):
            nn.init.xavier_uniform_(layer.weight.flatten(1))  # a view of the weight
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for part in network.modules():
        if isinstance(part, ClassEmbedding):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, NoiseEmbedding):
            for layer in part.layers:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(part, ModulatedBlock | ModulatedPixels):
            nn.init.zeros_(part.modulation.weight)
            if isinstance(part, ModulatedPixels):
                nn.init.zeros_(part.out.weight)
