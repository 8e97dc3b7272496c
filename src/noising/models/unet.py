"""The U-Net of the diffusion literature.

Legend: B images, H and W the image's sides, h and w a level's sides, C a level's channels, E embedding width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.blocks import Attention, NoiseEmbedding, Residual, zeroed

MAX_WIDTH, MAX_BLOCKS = 2**16, 1000  # beyond them a network would exceed any memory or take hours to build


class Stage(nn.Module):
    """A residual block, followed by self-attention where the level has it."""

    def __init__(self, residual: Residual, attention: Attention | None) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        x = self.residual(x, embedded)  # (B, C, h, w)
        return x if self.attention is None else self.attention(x)  # (B, C, h, w)


class UNet(nn.Module):
    """Residual blocks down to a small image and back up, with skip connections at each level.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), appendix B, https://arxiv.org/abs/2006.11239,
    with the noise label as scale and shift (https://arxiv.org/abs/2102.09672).

    ``model(x, noise_label, class_label=None)``: x (B, channels, H, W), noise_label (B,) about 0 to 1000,
    class_label (B,) long or None; output is (B, out_channels, H, W), zero before training. Row ``classes``
    of the class embedding means "no class", and so does None.

    Args:
        resolution: side of the image; a multiple of 2^(levels - 1).
        classes: number of image classes; 0 for a model without classes.
        width: channels of the first level; a multiple of ``groups`` and ``heads``.
        multipliers: one per level, which has width * multiplier channels and half the resolution of the one before.
        blocks: residual blocks per level.
        attention: resolutions with self-attention, besides the middle, which always has it; others are ignored.
        heads, groups: attention heads, and groups of each group normalization.
        dropout: probability in [0, 1) that a residual block drops a feature in training.

    Raises ValueError if a number is out of range or does not divide another; the message names it.
    """

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        resolution: int,
        classes: int = 0,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (8, 4),
        heads: int = 4,
        groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, number in {"width": width, "blocks": blocks, "heads": heads, "groups": groups}.items():
            require(number >= 1, f"{name} must be at least 1, got {number}")
        require(width <= MAX_WIDTH, f"width must be at most {MAX_WIDTH}, got {width}")
        require(blocks <= MAX_BLOCKS, f"blocks must be at most {MAX_BLOCKS}, got {blocks}")
        require(classes >= 0, f"classes must be at least 0 (0: no classes), got {classes}")
        some = len(multipliers) > 0 and min(multipliers) >= 1
        require(some, f"multipliers must be one or more numbers of at least 1, got {list(multipliers)}")
        require(width % groups == 0, f"width must be a multiple of groups={groups}, got {width}")
        require(width % heads == 0, f"width must be a multiple of heads={heads}, got {width}")
        shrink = 2 ** (len(multipliers) - 1)
        need = f"multipliers make {len(multipliers)} levels, which need a resolution divisible by {shrink}"
        require(resolution >= 1 and resolution % shrink == 0, f"{need}, got {resolution}: use fewer")
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")

        embedding = 4 * width
        self.classes = classes
        self.noise_embedding = NoiseEmbedding(width, embedding)
        self.class_embedding = nn.Embedding(classes + 1, embedding) if classes else None

        def stage(inputs: int, outputs: int, attends: bool) -> Stage:
            residual = Residual(inputs, outputs, embedding, groups, dropout)
            return Stage(residual, Attention(outputs, groups, heads) if attends else None)

        features, skips = width, [width]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(nn.Conv2d(features, features, 3, stride=2, padding=1))  # halves the sides
                skips.append(features)
            for _ in range(blocks):
                self.down.append(stage(features, multiplier * width, resolution >> level in attention))
                features = multiplier * width
                skips.append(features)
        self.middle = nn.ModuleList([stage(features, features, True), stage(features, features, False)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                inputs = features + skips.pop()
                self.up.append(stage(inputs, multiplier * width, resolution >> level in attention))
                features = multiplier * width
            if level > 0:
                convolution = nn.Conv2d(features, features, 3, padding=1)
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2.0), convolution))  # doubles the sides
        self.last_norm = nn.GroupNorm(groups, features)
        self.last = zeroed(nn.Conv2d(features, out_channels, 3, padding=1))

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        embedded = self.noise_embedding(noise_label)  # (B, E)
        if self.class_embedding is not None:
            if class_label is None:
                class_label = torch.full(noise_label.shape, self.classes, device=noise_label.device)  # (B,)
            embedded = embedded + self.class_embedding(class_label)  # (B, E)
        elif class_label is not None:
            raise ValueError("class_label needs a model with classes, this one was built with classes=0")
        embedded = F.silu(embedded)  # (B, E)
        h = self.first(x)  # (B, width, H, W)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedded) if isinstance(layer, Stage) else layer(h)  # (B, C, h, w)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedded)  # (B, C, h, w), the smallest
        for layer in self.up:
            if isinstance(layer, Stage):
                h = torch.cat([h, skips.pop()], dim=1)  # (B, C + skipped, h, w)
            h = layer(h, embedded) if isinstance(layer, Stage) else layer(h)  # (B, C, h, w); upsampled (B, C, 2h, 2w)
        out: Tensor = self.last(F.silu(self.last_norm(h)))  # (B, out_channels, H, W)
        return out
