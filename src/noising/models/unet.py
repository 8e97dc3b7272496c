"""The U-Net of DDPM, improved DDPM and ADM.

Legend: B images, H and W the image's sides, E embedding width.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from noising.models.blocks import (
    Attention,
    Double,
    Halve,
    HalvingConvolution,
    Residual,
    Stage,
    group_norm,
    initialize_by_glorot,
    zeroed,
)
from noising.models.embeddings import ClassEmbedding, NoiseEmbedding
from noising.models.u_shape import UShape, require_heads, require_sizes


class UNet(UShape):
    """Residual blocks down to a small image and back up, with skip connections at each level.

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), appendix B, https://arxiv.org/abs/2006.11239;
    Nichol & Dhariwal (2021), https://arxiv.org/abs/2102.09672; Dhariwal & Nichol (2021), section 3 (ADM),
    https://arxiv.org/abs/2105.05233.

    ``model(x, noise_label, class_label=None)``: x (B, channels, H, W), noise_label (B,) about 0 to 1000,
    class_label (B,) long or None; output is (B, out_channels, H, W), zero before training. The number ``classes``
    means "no class", and so does None.

    Args:
        resolution: side of the image; a multiple of 2^(levels - 1).
        classes: number of image classes; 0 for a model without classes.
        null_class: "no class" has a row of its own, which label dropout trains; without it, nothing is added.
        width: channels of the first level; a multiple of ``groups`` and ``heads``.
        multipliers: one per level, which has width * multiplier channels and half the resolution of the one before.
        blocks: residual blocks per level.
        attention: resolutions with self-attention, besides the middle, which always has it; others are ignored.
        heads: attention heads; head_width: instead, the channels of each head.
        groups, norm_eps: groups of each group normalization, and its ε.
        channels_per_group: with fewer channels a group, a normalization has fewer groups.
        dropout: probability in [0, 1) that a residual block drops a feature in training.
        scale_shift: the embedding scales and shifts the features (improved DDPM); without it, is added (DDPM).
        residual_resampling: residual blocks that halve and double (ADM); without it, convolutions do.
        corner_padding: halving convolutions are padded at the right and the bottom only (DDPM).
        endpoint: the embedding's longest wavelength is 2π · 10,000 itself (DDPM), not the one before it.
        glorot: initial weights as in DDPM, and an output of about 1e-5 before training instead of zero.
        checkpointing: features within a block are computed again for the gradient: less memory, more time.

    Raises ValueError if a number is out of range or does not divide another; the message names it.
    """

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        resolution: int,
        classes: int = 0,
        null_class: bool = True,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (8, 4),
        heads: int = 4,
        head_width: int | None = None,
        groups: int = 8,
        norm_eps: float = 1e-5,
        channels_per_group: int = 1,
        dropout: float = 0.0,
        scale_shift: bool = True,
        residual_resampling: bool = False,
        corner_padding: bool = False,
        endpoint: bool = False,
        glorot: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_sizes(resolution, classes, width, multipliers, blocks, groups, dropout, channels_per_group)
        widths = [multiplier * width for multiplier in multipliers]
        attends = [resolution >> level in attention for level in range(len(widths))]
        require_heads(
            width, [w for w, has in zip(widths, attends, strict=True) if has] + widths[-1:], heads, head_width
        )

        embedding = 4 * width
        self.classes = classes
        self.noise_embedding = NoiseEmbedding(width, embedding, endpoint)
        self.class_embedding = ClassEmbedding(classes, embedding, null_class) if classes else None
        norm = group_norm(groups, norm_eps, channels_per_group)

        def stage(
            inputs: int, outputs: int, attends: bool = False, joins: bool = False, resample: nn.Module | None = None
        ) -> Stage:
            residual = Residual(inputs, outputs, embedding, norm, dropout, scale_shift, resample)
            of_level = outputs // head_width if head_width else heads
            return Stage(residual, Attention(outputs, norm, of_level) if attends else None, joins, checkpointing)

        def halve(features: int) -> nn.Module:
            if residual_resampling:
                return stage(features, features, resample=Halve())
            return HalvingConvolution(features, corner_padding)

        def double(features: int) -> nn.Module:
            if residual_resampling:
                return stage(features, features, resample=Double())
            return nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(features, features, 3, padding=1))

        first = nn.Conv2d(channels, width, 3, padding=1)
        features = self.lay_out(first, widths, attends, blocks, stage, halve, double)
        self.last_norm = norm(features)
        self.last = zeroed(nn.Conv2d(features, out_channels, 3, padding=1))
        if glorot:
            initialize_by_glorot(self, self.last)

    def embed(self, noise_label: Tensor, class_label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        embedded: Tensor = self.noise_embedding(noise_label)  # (B, E)
        if self.class_embedding is not None:
            embedded = embedded + self.class_embedding(class_label)  # (B, E)
        return F.silu(embedded)
