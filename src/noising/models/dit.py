"""The transformer of DiT and SiT.

Legend: B images, H and W the image's sides, P patches, D token width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.embeddings import ClassEmbedding, NoiseEmbedding, labels_for
from noising.models.tokens import (
    FeedForward,
    ModulatedBlock,
    ModulatedPixels,
    Patches,
    TokenAttention,
    as_image,
    initialize_modulated,
    inner_width,
    require_token_sizes,
    sinusoidal_positions,
)

WAVES, NORM_EPS = 256, 1e-6


class DiT(nn.Module):
    """A transformer over an image's patches, each block of which is modulated by noise label and class.

    Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023), https://arxiv.org/abs/2212.09748; Ma et al.,
    "SiT" (2024), https://arxiv.org/abs/2401.08740.

    ``model(x, noise_label, class_label=None)``: x (B, channels, H, W), noise_label (B,) about 0 to 1000 (of SiT 0 to
    1), class_label (B,) long or None; output is (B, out_channels, H, W), zero before training. The number ``classes``
    means "no class", and so does None.

    Args:
        resolution: side of the image; a multiple of ``patch``.
        classes: number of image classes; 0 for a model without classes.
        null_class: "no class" has a row of its own, which label dropout trains; without it, nothing is added.
        patch: side of the patches.
        width: of the tokens; a multiple of ``heads`` and of 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: width within the feed-forward layers, in token widths.
        drops_variance: it computes outputs for a variance beside its own and drops them, as SiT does.
        endpoint: the noise embedding's longest wavelength is 2π · 10,000 itself (diffusers), not the one before it.
        checkpointing: features within a block are computed again for the gradient: less memory, more time.

    Raises ValueError if a number is out of range or does not divide another; the message names it.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        resolution: int,
        classes: int = 0,
        null_class: bool = True,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        drops_variance: bool = False,
        endpoint: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_token_sizes(resolution, classes, patch, width, depth, heads)
        require(width % 4 == 0, f"width must be a multiple of 4, got {width}")
        inner = inner_width(mlp_ratio, width)
        self.classes, self.patch, self.out_channels, self.endpoint = classes, patch, out_channels, endpoint
        outputs = 2 * out_channels if drops_variance else out_channels

        def norm(width: int) -> nn.Module:
            return nn.LayerNorm(width, NORM_EPS, elementwise_affine=False)

        self.noise_embedding = NoiseEmbedding(WAVES, width, endpoint)
        self.class_embedding = ClassEmbedding(classes, width, null_class) if classes else None
        self.patches = Patches(channels, width, patch)
        self.register_buffer("positions", sinusoidal_positions(resolution // patch, width))
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                width,
                norm,
                TokenAttention(width, heads),
                FeedForward(width, inner, tanh=True),
                checkpointing,
            )
            for _ in range(depth)
        )
        self.last = ModulatedPixels(width, norm, patch * patch * outputs)
        initialize_modulated(self)

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        class_label = labels_for(class_label, self.classes, noise_label)  # (B,) or None
        embedded = self.noise_embedding(noise_label)  # (B, D)
        if self.class_embedding is not None:
            embedded = embedded + self.class_embedding(class_label)  # (B, D)
        embedded = F.silu(embedded)  # (B, D)
        tokens = self.patches(x) + self.positions  # (B, P, D)
        for block in self.blocks:
            tokens = block(tokens, embedded)  # (B, P, D)
        image = as_image(self.last(tokens, embedded), self.patch)  # (B, outputs, H, W)
        return image[:, : self.out_channels]  # (B, out_channels, H, W)
