"""The magnitude-preserving U-Net of EDM2, and its estimate of the uncertainty at a noise level.

Every layer keeps the variance of what passes it: weights have unit magnitude, sums and concatenations are scaled, and
there is neither bias nor group normalization.

Legend: B images, H and W the image's sides, C a level's channels, E embedding width, K classes, N attention heads,
P = h w pixels of a level.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.blocks import Double, Halve, Stage, attend
from noising.models.embeddings import scaled_one_hot
from noising.models.u_shape import UShape, require_heads, require_sizes

EPS = 1e-4
SILU_GAIN = 1 / 0.596  # SiLU of a standard normal number has a second moment of 0.596²
BRANCH = 0.3  # share of a residual branch in its sum
EQUAL = 0.5  # share of each of two that count the same


def unit_magnitude(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """x divided by its root mean square over these axes, to which 1e-4 is added."""
    precise = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=precise)
    return x / (EPS + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of standard normal numbers."""
    return F.silu(x) * SILU_GAIN


def weighted_sum(x: Tensor, h: Tensor, share: float) -> Tensor:
    """(1 − share) x + share h, scaled so that two of variance 1 that do not correlate give variance 1."""
    return torch.lerp(x, h, share) * (1 / math.hypot(1 - share, share))


class _UnitWeight(nn.Module):
    """A layer whose weight is used at unit magnitude for each output: its length has no effect, its direction has.

    `normalize_` writes that magnitude back, so that the size of a step relative to the weight is the learning rate's
    alone. Karras et al. (2024), equations 47 and 66.
    """

    weight: Tensor

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1)."""
        nn.init.normal_(self.weight)

    def scaled_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight that keeps the magnitude of its input, times a gain."""
        fan_in = self.weight[0].numel()
        return unit_magnitude(self.weight, tuple(range(1, self.weight.ndim))) * (gain / math.sqrt(fan_in))

    @torch.no_grad()
    def normalize_(self) -> None:
        """Give the weight itself unit magnitude."""
        self.weight.copy_(unit_magnitude(self.weight, tuple(range(1, self.weight.ndim))))


class UnitLinear(_UnitWeight, nn.Linear):
    """A linear layer without bias, at unit magnitude."""

    def __init__(self, features: int, out_features: int) -> None:
        super().__init__(features, out_features, bias=False)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return F.linear(x, self.scaled_weight(gain))


class UnitConvolution(_UnitWeight, nn.Conv2d):
    """A convolution by an odd kernel without bias, at unit magnitude, that keeps the sides of the image."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(channels, out_channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return F.conv2d(x, self.scaled_weight(gain), padding=self.padding)  # type: ignore[arg-type]

    def by_pixel(self, pixels: Tensor) -> Tensor:
        """The convolution by one pixel, of pixels (B, P, C) whose channels lie side by side."""
        return F.linear(pixels, self.scaled_weight().flatten(1))


class FirstConvolution(UnitConvolution):
    """A 3x3 convolution of the image and one more channel that is 1 everywhere, in place of a bias."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels + 1, out_channels, 3)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0), gain)  # (B, width, H, W)


class RandomCosines(nn.Module):
    """√2 cos(f x + φ) of a number (B,), each of magnitude 1: (B, waves); f and φ are drawn and then fixed."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, waves: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(waves))
        self.register_buffer("phases", 2 * math.pi * torch.rand(waves))

    def forward(self, number: Tensor) -> Tensor:
        angles = number.to(self.phases.dtype)[:, None] * self.frequencies + self.phases  # (B, waves)
        return math.sqrt(2) * angles.cos()


class LogVariance(nn.Module):
    """u, the logarithm of the loss to expect at a noise level, of its noise label (B,): (B,), float32.

    It weighs the levels in training (`UncertaintyWeighted`), and has no part in the network's output.
    """

    def __init__(self, waves: int) -> None:
        super().__init__()
        self.features = RandomCosines(waves)
        self.linear = UnitLinear(waves, 1)

    def forward(self, noise_label: Tensor) -> Tensor:
        with torch.autocast(noise_label.device.type, enabled=False):
            estimate: Tensor = self.linear(self.features(noise_label))  # (B, 1)
        return estimate.squeeze(1)


class UnitResidual(nn.Module):
    """A residual block of unit magnitude, whose branch is scaled by the embedding.

    normalizes: the input has unit magnitude at each pixel, as on the way down; it is projected before, or on the way up
    at the end. resample: applied to the input of both paths.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        dropout: float = 0.0,
        normalizes: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.normalizes, self.resample = normalizes, resample
        self.scale_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = UnitConvolution(out_channels if normalizes else channels, out_channels, 3)
        self.scale = UnitLinear(embedding, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = UnitConvolution(out_channels, out_channels, 3)
        self.shortcut = UnitConvolution(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        if self.resample is not None:
            x = self.resample(x)  # (B, C, h/2, w/2) or (B, C, 2h, 2w)
        if self.normalizes:
            x = unit_magnitude(self.shortcut(x), (1,))  # (B, out, h, w)
        h = self.conv_in(scaled_silu(x))  # (B, out, h, w)
        scale = 1 + self.scale(embedded, self.scale_gain)  # (B, out)
        h = self.dropout(scaled_silu(h * scale[:, :, None, None].to(h.dtype)))
        h = self.conv_out(h)  # (B, out, h, w)
        return weighted_sum(x if self.normalizes else self.shortcut(x), h, BRANCH)


class CosineAttention(nn.Module):
    """x + self-attention over the pixels, whose queries, keys and values have unit magnitude: (B, C, h, w)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = UnitConvolution(channels, 3 * channels, 1)
        self.out = UnitConvolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)  # (B, P, C)
        projected = self.query_key_value.by_pixel(pixels)  # (B, P, 3C)
        per_head = projected.view(*projected.shape[:2], 3, self.heads, -1)  # (B, P, 3, N, C / N)
        query, key, value = unit_magnitude(per_head, (-1,)).permute(2, 0, 3, 1, 4).unbind()  # (B, N, P, C / N) each
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)  # (B, P, C)
        mixed = self.out.by_pixel(mixed).transpose(1, 2).reshape(x.shape)  # (B, C, h, w)
        return weighted_sum(x, mixed.to(x.dtype), BRANCH)


class ClippedStage(Stage):
    """A stage whose features are clipped to [−limit, limit]."""

    def __init__(
        self, residual: UnitResidual, attention: CosineAttention | None, joins: bool, checkpointed: bool, limit: float
    ) -> None:
        super().__init__(residual, attention, joins, checkpointed)
        self.limit = limit

    def compute(self, x: Tensor, embedded: Tensor) -> Tensor:  # type: ignore[override]
        return super().compute(x, embedded).clamp(-self.limit, self.limit)


class EDM2UNet(UShape):
    """A U-Net in which every layer keeps the magnitude of what passes it: EDM2.

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), section 2 and appendix
    B.4, https://arxiv.org/abs/2312.02696.

    ``model(x, noise_label, class_label=None)``: x (B, channels, H, W), noise_label (B,) = ln(σ)/4, class_label (B,)
    long or None; output is (B, out_channels, H, W), zero before training. The number ``classes`` means "no class", and
    so does None. ``model.log_variance(noise_label)`` is the uncertainty (B,), which the loss reads.

    Before anything else is computed, a call in training mode writes all weights back at unit magnitude
    (`normalize_weights`), as the paper does in each layer. So the network keeps its rule in any training loop, and
    weights change in one place only: not within a block that is computed again for the gradient, nor in evaluation,
    where the averaged weights are in place. The averages are those of the weights after the optimizer's step. One
    restriction follows: of two calls in training mode, the gradient of the first must be computed before the second.

    Args:
        resolution: side of the image; a multiple of 2^(levels - 1).
        classes: number of image classes; 0 for a model without classes.
        width: channels of a level with multiplier 1.
        multipliers: one per level, which has width * multiplier channels and half the resolution of the one before.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: resolutions with self-attention, besides the middle, which always has it; others are ignored.
        head_width: channels of each attention head.
        dropout: probability in [0, 1) that a residual block drops a feature in training.
        noise_waves: cosines of the noise label; None: as many as channels of the first level.
        embedding: width E of the embedding; None: as many as channels of the widest level.
        clip_features: limit of the features behind each block.
        log_variance_waves: cosines that the uncertainty is read from; 0: a network without it.
        checkpointing: features within a block are computed again for the gradient: less memory, more time.

    Raises ValueError if a number is out of range or does not divide another; the message names it.
    """

    first: UnitConvolution
    last: UnitConvolution

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int,
        resolution: int,
        classes: int = 0,
        width: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (16, 8),
        head_width: int = 64,
        dropout: float = 0.0,
        noise_waves: int | None = None,
        embedding: int | None = None,
        clip_features: float = 256.0,
        log_variance_waves: int = 128,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_sizes(resolution, classes, width, multipliers, blocks, 1, dropout)
        for name, number, least in (
            ("noise_waves", noise_waves, 1),
            ("embedding", embedding, 1),
            ("log_variance_waves", log_variance_waves, 0),
        ):
            require(number is None or number >= least, f"{name} must be at least {least}, got {number}")
        require(clip_features > 0, f"clip_features must be positive, got {clip_features}")
        widths = [multiplier * width for multiplier in multipliers]
        attends = [resolution >> level in attention for level in range(len(widths))]
        with_attention = [w for w, has in zip(widths, attends, strict=True) if has] + widths[-1:]
        require_heads(width, with_attention, 1, head_width)

        waves, embedding = noise_waves or widths[0], embedding or max(widths)
        self.classes = classes
        self.noise_features = RandomCosines(waves)
        self.noise_embedding = UnitLinear(waves, embedding)
        self.class_embedding = UnitLinear(classes, embedding) if classes else None

        def make(
            inputs: int, outputs: int, attends: bool, joins: bool, normalizes: bool, resample: nn.Module | None = None
        ) -> Stage:
            residual = UnitResidual(inputs, outputs, embedding, dropout, normalizes, resample)
            attention = CosineAttention(outputs, outputs // head_width) if attends else None
            return ClippedStage(residual, attention, joins, checkpointing, clip_features)

        def stage(inputs: int, outputs: int, attends: bool = False, joins: bool = False) -> Stage:
            return make(inputs, outputs, attends, joins, normalizes=not joins)

        def middle(inputs: int, outputs: int, attends: bool = False, joins: bool = False) -> Stage:
            return make(inputs, outputs, attends, joins, normalizes=False)

        def halve(features: int) -> Stage:
            return make(features, features, False, False, normalizes=True, resample=Halve())

        def double(features: int) -> Stage:
            return make(features, features, False, False, normalizes=False, resample=Double())

        first = FirstConvolution(channels, widths[0])
        features = self.lay_out(first, widths, attends, blocks, stage, halve, double, middle=middle)
        self.last = UnitConvolution(features, out_channels, 3)
        self.last_gain = nn.Parameter(torch.zeros(()))
        self.log_variance = LogVariance(log_variance_waves) if log_variance_waves else None

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_label: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        if self.training:
            self.normalize_weights()
        return super().forward(x, noise_label, class_label, augmentation)

    def normalize_weights(self) -> None:
        """Write all weights back at unit magnitude; they compute the same."""
        for layer in self.modules():
            if isinstance(layer, _UnitWeight):
                layer.normalize_()

    def embed(self, noise_label: Tensor, class_label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        embedded: Tensor = self.noise_embedding(self.noise_features(noise_label))  # (B, E)
        if self.class_embedding is not None and class_label is not None:
            of_each = scaled_one_hot(class_label, self.classes, self.noise_features.phases.dtype)  # (B, K)
            embedded = weighted_sum(embedded, self.class_embedding(of_each), EQUAL)  # (B, E)
        return scaled_silu(embedded)

    def join(self, h: Tensor, skip: Tensor) -> Tensor:
        """Both beside each other, each scaled so that it has half of the magnitude, whatever its channels."""
        total = (h.shape[1] + skip.shape[1]) / 2
        parts = [part * math.sqrt(total / part.shape[1]) for part in (h, skip)]
        return super().join(parts[0], parts[1])  # (B, C + skipped, h, w)

    def finish(self, h: Tensor) -> Tensor:
        """The output, by a gain that is learned from zero."""
        out: Tensor = self.last(h, self.last_gain)  # (B, out_channels, H, W)
        return out
