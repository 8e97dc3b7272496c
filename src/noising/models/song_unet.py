"""The U-Nets DDPM++ and NCSN++ of Song et al. (2021), in the form that Karras et al. (2022) gave them.

Legend: B images, H and W the image's sides, C a level's channels, E embedding width, K classes.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.blocks import (
    Attention,
    Double,
    FilteredConvolution,
    Halve,
    Residual,
    Stage,
    group_norm,
    initialize_by_glorot,
    scaled_sum,
    zeroed,
)
from noising.models.embeddings import FourierFeatures, Sinusoids, scaled_one_hot
from noising.models.u_shape import UShape, require_heads, require_sizes

HALF = math.sqrt(0.5)  # two sums of variance 1 add up to variance 1


class SongUNet(UShape):
    """A U-Net whose sums are scaled by √½, with residual blocks that halve and double: DDPM++, or NCSN++.

    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021), appendix H,
    https://arxiv.org/abs/2011.13456; Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
    Models" (2022), appendix F, https://arxiv.org/abs/2206.00364.

    ``model(x, noise_label, class_label=None, augmentation=None)``: x (B, channels, H, W), noise_label (B,),
    class_label (B,) long or None, augmentation (B, augmentation_labels) or None; output is (B, out_channels, H, W),
    about 1e-5 before training. The number ``classes`` means "no class", and so does None. Where several heads
    attend, each has channels / heads of them.

    Args:
        resolution: side of the image; a multiple of 2^(levels - 1).
        classes: number of image classes; 0 for a model without classes.
        augmentation_labels: numbers that tell how an image was augmented; 0 for a model that is not told.
        width: channels of the first convolution.
        multipliers: one per level, which has width * multiplier channels and half the resolution of the one before.
        blocks: residual blocks per level.
        attention: resolutions with self-attention: after each block on the way down, after the last on the way up.
        heads: attention heads.
        groups: groups of each group normalization; fewer where they would have under four channels.
        dropout: probability in [0, 1) that a residual block drops a feature in training.
        fourier: the noise label is embedded by random Fourier features (NCSN++), not by sinusoids (DDPM++).
        pyramid: a pyramid of the input, each level halved and convolved, is added on the way down (NCSN++).
        taps: filter of the resampling: [1, 1] in DDPM++, [1, 3, 3, 1] in NCSN++.
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
        augmentation_labels: int = 0,
        width: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        heads: int = 1,
        groups: int = 32,
        dropout: float = 0.0,
        fourier: bool = False,
        pyramid: bool = False,
        taps: Sequence[float] = (1, 1),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_sizes(resolution, classes, width, multipliers, blocks, groups, dropout, channels_per_group=4)
        require(augmentation_labels >= 0, f"augmentation_labels must be at least 0, got {augmentation_labels}")
        even = len(taps) >= 2 and len(taps) % 2 == 0 and sum(taps) != 0
        require(even, f"taps must be an even number of filter taps whose sum is not 0, got {list(taps)}")
        require_heads(width, [], heads, None)

        widths = [multiplier * width for multiplier in multipliers]
        attends = [resolution >> level in attention for level in range(len(widths))]
        embedding, waves = 4 * width, 2 * width if fourier else width
        norm = group_norm(groups, eps=1e-6, channels_per_group=4)
        self.classes, self.augmentation_labels, self.fourier = classes, augmentation_labels, fourier
        self.noise_features = FourierFeatures(waves) if fourier else Sinusoids(waves, endpoint=True)
        self.class_embedding = nn.Linear(classes, waves) if classes else None
        self.augmentation_embedding = nn.Linear(augmentation_labels, waves, bias=False) if augmentation_labels else None
        self.layers = nn.Sequential(nn.Linear(waves, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def stage(
            inputs: int, outputs: int, attends: bool = False, joins: bool = False, resample: nn.Module | None = None
        ) -> Stage:
            projects = resample is not None or inputs != outputs
            residual = Residual(inputs, outputs, embedding, norm, dropout, False, resample, projects, HALF)
            return Stage(residual, Attention(outputs, norm, heads, HALF) if attends else None, joins, checkpointing)

        def halve(features: int) -> Stage:
            return stage(features, features, resample=Halve(taps))

        def double(features: int) -> Stage:
            return stage(features, features, resample=Double(taps))

        first = nn.Conv2d(channels, width, 3, padding=1)
        features = self.lay_out(first, widths, attends, blocks, stage, halve, double, attends_once=True)
        self.pyramid = nn.ModuleDict()
        """Layers of the input's pyramid, by the place on the way down of the halving layer that each adds to."""
        if pyramid:
            inputs = channels
            for level in range(1, len(widths)):
                place, outputs = level * (blocks + 1) - 1, widths[level - 1]
                self.pyramid[str(place)] = FilteredConvolution(inputs, outputs, taps)
                inputs = outputs
        self.last_norm = norm(features)
        self.last = zeroed(nn.Conv2d(features, out_channels, 3, padding=1))
        initialize_by_glorot(self, self.last, attention=0.1)

    def embed(self, noise_label: Tensor, class_label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        embedded: Tensor = self.noise_features(noise_label)  # (B, waves)
        if self.class_embedding is not None and class_label is not None:
            of_each = scaled_one_hot(class_label, self.classes, embedded.dtype)  # (B, K)
            embedded = embedded + self.class_embedding(of_each)  # (B, waves)
        if augmentation is not None and self.augmentation_embedding is not None:
            embedded = embedded + self.augmentation_embedding(augmentation)  # (B, waves)
        return F.silu(self.layers(embedded))  # (B, E)

    def descend(self, x: Tensor, embedded: Tensor) -> tuple[Tensor, list[Tensor]]:
        h, reduced = self.first(x), x  # (B, width, H, W) and (B, channels, H, W)
        skips = [h]
        for place, layer in enumerate(self.down):
            h = layer(h, embedded)  # (B, C, h, w)
            if str(place) in self.pyramid:
                h = reduced = scaled_sum(self.pyramid[str(place)](reduced), h, HALF)  # (B, C, h, w)
            skips.append(h)
        return h, skips
