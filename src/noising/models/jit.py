"""JiT, "just image transformers": a transformer over large patches of pixels, which predicts the clean image.

Legend: B images, C channels, H and W the image's sides, p a patch's side, P = (H / p) (W / p) patches, D token width,
L class tokens, T = P or L + P tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.embeddings import ClassEmbedding, NoiseEmbedding, labels_for
from noising.models.tokens import (
    GatedFeedForward,
    ModulatedBlock,
    ModulatedPixels,
    Patches,
    Rotation,
    TokenAttention,
    as_image,
    initialize_modulated,
    inner_width,
    require_token_sizes,
    sinusoidal_positions,
)

WAVES, NORM_EPS = 256, 1e-6


def gated_width(mlp_ratio: float, width: int) -> int:
    """The width within a gated feed-forward layer, which has as many parameters as one of mlp_ratio token widths."""
    return max(1, int(inner_width(mlp_ratio, width) * 2 / 3))


class JiT(nn.Module):
    """Transformer blocks over patches, modulated by the noise label and the class, which joins them as tokens too.

    Li & He, "Back to Basics: Let Denoising Generative Models Denoise" (2025). https://arxiv.org/abs/2511.13720

    ``model(x, noise_label, class_label=None)``: x (B, channels, H, W), noise_label (B,), published weights: 0 at noise
    to 1 at the clean image, class_label (B,) long or None; output is (B, out_channels, H, W), zero before training. The
    number ``classes`` means "no class", and so does None.

    Args:
        resolution: side of the image; a multiple of ``patch``.
        classes: number of image classes; 0 for a model without classes.
        width: of each token; a multiple of 4 and of 4 ``heads``.
        depth: blocks.
        heads: attention heads.
        patch: side of the square patches.
        bottleneck: a patch's numbers are mapped to so many before they become a token.
        mlp_ratio: hidden width of a block's two layers, in widths; as they are gated, two thirds of it.
        class_tokens: tokens of the class ahead of the patches; 0 for none.
        class_tokens_at: the block before which they are put there, counted from 0; None: after a third of all.
        dropout: probability in [0, 1) that a block drops a feature in training, in the middle half of the blocks.
        checkpointing: features within a block are computed again for the gradient: less memory, more time.

    Raises ValueError if a number is out of range or does not divide another; the message names it.
    """

    positions: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        resolution: int,
        classes: int = 0,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 4,
        bottleneck: int = 128,
        mlp_ratio: float = 4.0,
        class_tokens: int = 0,
        class_tokens_at: int | None = None,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_token_sizes(resolution, classes, patch, width, depth, heads)
        require(width % (4 * heads) == 0, f"width must be a multiple of 4 * heads={4 * heads}, got {width}")
        require(bottleneck >= 1, f"bottleneck must be at least 1, got {bottleneck}")
        require(class_tokens >= 0, f"class_tokens must be at least 0, got {class_tokens}")
        require(classes > 0 or not class_tokens, f"class_tokens needs classes, got {class_tokens} without: use 0")
        at = depth // 3 if class_tokens_at is None else class_tokens_at
        require(0 <= at < depth, f"class_tokens_at must be from 0 to {depth - 1}, a block, got {at}")
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")
        inner = gated_width(mlp_ratio, width)
        self.classes, self.patch = classes, patch
        self.class_tokens, self.class_tokens_at = class_tokens, at
        side = resolution // patch

        def block(dropout: float) -> ModulatedBlock:
            attention = TokenAttention(width, heads, norm=Norm, dropout=dropout)
            return ModulatedBlock(width, Norm, attention, GatedFeedForward(width, inner, dropout), checkpointing)

        self.noise_embedding = NoiseEmbedding(WAVES, width)
        self.class_embedding = ClassEmbedding(classes, width) if classes else None
        self.patches = Bottleneck(channels, bottleneck, width, patch)
        self.register_buffer("positions", sinusoidal_positions(side, width))
        self.class_positions = nn.Parameter(torch.zeros(class_tokens, width)) if class_tokens else None
        rotation = Rotation.of_places(side, width // heads, ahead=class_tokens)
        self.register_buffer("cosine", rotation.cosine, persistent=False)
        self.register_buffer("sine", rotation.sine, persistent=False)
        middle = range(depth // 4, 3 * (depth // 4))
        self.blocks = nn.ModuleList(block(dropout if number in middle else 0.0) for number in range(depth))
        self.last = ModulatedPixels(width, Norm, patch**2 * out_channels)
        initialize_modulated(self)
        if self.class_positions is not None:
            nn.init.normal_(self.class_positions, std=0.02)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        class_label = labels_for(class_label, self.classes, noise_label)  # (B,) or None
        embedded = self.noise_embedding(noise_label)  # (B, D)
        if self.class_embedding is not None:
            of_class = self.class_embedding(class_label)  # (B, D)
            embedded = embedded + of_class  # (B, D)
        embedded = F.silu(embedded)  # (B, D)
        tokens = self.patches(x) + self.positions  # (B, P, D)
        ahead = self.class_tokens
        rotation = Rotation(self.cosine[ahead:], self.sine[ahead:])
        for number, block in enumerate(self.blocks):
            if self.class_positions is not None and number == self.class_tokens_at:
                tokens = torch.cat([of_class[:, None] + self.class_positions, tokens], dim=1)  # (B, L + P, D)
                rotation = Rotation(self.cosine, self.sine)
            tokens = block(tokens, embedded, rotation)  # (B, T, D)
        return as_image(self.last(tokens[:, ahead:], embedded), self.patch)  # (B, out_channels, H, W)


class Norm(nn.RMSNorm):
    """Root-mean-square normalization over a token or a head, computed in the type of its weight."""

    def __init__(self, width: int) -> None:
        super().__init__(width, NORM_EPS)

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(vectors.to(self.weight.dtype))


class Bottleneck(nn.Sequential):
    """The square patches of an image, each mapped to a few numbers and those to a token: (B, C, H, W) to (B, P, D)."""

    def __init__(self, channels: int, bottleneck: int, width: int, patch: int) -> None:
        """bottleneck: how many numbers."""
        super().__init__(Patches(channels, bottleneck, patch, bias=False), nn.Linear(bottleneck, width))
