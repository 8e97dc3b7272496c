"""The network of Kingma et al. (2021): residual blocks that all keep the image's resolution.

Legend: B images, H and W the image's sides, E embedding width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.blocks import Attention, Residual, Stage, group_norm, initialize_by_lecun
from noising.models.embeddings import ClassEmbedding, PixelFourierFeatures, Sinusoids
from noising.models.u_shape import UShape, require_sizes

MAX_EXPONENT = 16
"""The highest frequency of the input's Fourier features: float32 has no digits left for finer ones."""


class VDMUNet(UShape):
    """A U-Net of one level: long, narrow, and without any resampling; made for likelihoods.

    Kingma et al., "Variational Diffusion Models" (2021), appendices B and C. https://arxiv.org/abs/2107.00630

    ``model(x, noise_label, class_label=None, augmentation=None)``: x (B, channels, H, W), noise_label (B,) about 0 to
    1000, class_label (B,) long or None, augmentation (B, its labels) or None, as zeros; output is
    (B, out_channels, H, W), x itself before training: the network predicts noise, which x nearly is at most times. The
    number ``classes`` means "no class", and so does None.

    Args:
        out_channels: as many as `channels`.
        resolution: side of the image.
        classes: number of image classes; 0 for a model without classes, as in the paper.
        augmentation_labels: numbers that tell how an image was augmented, appended to the sinusoids; the paper's one,
            which is zero for whole images, is there also with 0.
        width: channels of all features; a multiple of ``groups``.
        blocks: residual blocks on the way down, one more on the way up.
        attention: self-attention follows every block, not only the first in the middle.
        frequencies: exponents k of the input's Fourier features, sines and cosines of 2π 2^k x; none without.
        groups: groups of each group normalization.
        dropout: probability in [0, 1) that a residual block drops a feature in training.
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
        blocks: int = 32,
        attention: bool = False,
        frequencies: Sequence[int] = (6, 7),
        groups: int = 32,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_sizes(resolution, classes, width, [1], blocks, groups, dropout)
        require(augmentation_labels >= 0, f"augmentation_labels must be at least 0, got {augmentation_labels}")
        needed = f"VDMUNet predicts noise alone, {channels} channels, not {out_channels}: use variance=fixed_small"
        require(out_channels == channels, needed)
        fine = all(0 <= exponent <= MAX_EXPONENT for exponent in frequencies)
        require(fine, f"frequencies must be exponents from 0 to {MAX_EXPONENT}, got {list(frequencies)}")

        embedding, waves = 4 * width, 2 * (width // 2)
        norm = group_norm(groups, eps=1e-6)
        self.classes, self.augmentation_labels = classes, max(1, augmentation_labels)
        self.sinusoids = Sinusoids(waves, endpoint=True)
        self.layers = nn.Sequential(
            nn.Linear(waves + self.augmentation_labels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.class_embedding = ClassEmbedding(classes, embedding) if classes else None
        self.fourier_features = PixelFourierFeatures(frequencies) if len(frequencies) else None

        def stage(inputs: int, outputs: int, attends: bool = False, joins: bool = False) -> Stage:
            residual = Residual(inputs, outputs, embedding, norm, dropout, scales=False, embedding_bias=False)
            return Stage(residual, Attention(outputs, norm, heads=1) if attends else None, joins, checkpointing)

        first = nn.Conv2d(channels * (1 + 2 * len(frequencies)), width, 3, padding=1)
        features = self.lay_out(first, [width], [attention], blocks, stage, nn.Identity, nn.Identity)
        self.last_norm = norm(features)
        self.last = nn.Conv2d(features, out_channels, 3, padding=1)
        initialize_by_lecun(self, self.last)

    def embed(self, noise_label: Tensor, class_label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        waves: Tensor = self.sinusoids(noise_label)  # (B, waves)
        if augmentation is None:
            augmentation = waves.new_zeros(len(waves), self.augmentation_labels)
        embedded: Tensor = self.layers(torch.cat([waves, augmentation], dim=1))  # (B, E)
        if self.class_embedding is not None:
            embedded = embedded + self.class_embedding(class_label)  # (B, E)
        return F.silu(embedded)

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_label: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        return x + super().forward(x, noise_label, class_label, augmentation)

    def descend(self, x: Tensor, embedded: Tensor) -> tuple[Tensor, list[Tensor]]:
        if self.fourier_features is not None:
            x = torch.cat([x, self.fourier_features(x)], dim=1)  # (B, channels (1 + 2 frequencies), H, W)
        return super().descend(x, embedded)
