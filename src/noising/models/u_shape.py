"""The shape that U-Nets share: levels of halved resolution on the way down, and skip connections to the way up.

Legend: B images, H and W the image's sides, h and w a level's sides, C a level's channels, E embedding width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noising.errors import require
from noising.models.blocks import Stage
from noising.models.embeddings import labels_for

MAX_WIDTH, MAX_BLOCKS = 2**16, 1000  # beyond them a network would exceed any memory or take hours to build


class MakeStage(Protocol):
    """(channels in, channels out, whether it has attention, whether it joins a skip connection) -> a stage."""

    def __call__(self, inputs: int, outputs: int, attends: bool = False, joins: bool = False) -> Stage: ...


class UShape(nn.Module, ABC):
    """Residual stages down to a small image and back up, with skip connections at each level.

    ``model(x, noise_label, class_label=None)``: x (B, channels, H, W), noise_label (B,), class_label (B,) long or
    None; output is (B, out_channels, H, W). A subclass embeds the labels and says what a stage is.
    """

    classes: int
    """Number of classes; 0 without."""
    augmentation_labels: int = 0
    """Number of labels of an image's augmentation; 0 for a network that takes none."""
    first: nn.Conv2d
    """x to the first features."""
    down: nn.ModuleList
    """Stages, each level's first layer but the first level's a halving one; each output is a skip connection."""
    middle: nn.ModuleList
    """Two stages at the least resolution."""
    up: nn.ModuleList
    """Stages, of which those that join take the last skip connection, and a doubling layer between the levels."""
    last_norm: nn.Module
    """The normalization before the last convolution."""
    last: nn.Conv2d
    """The last features to the output."""

    def lay_out(
        self,
        first: nn.Conv2d,
        widths: Sequence[int],
        attends: Sequence[bool],
        blocks: int,
        stage: MakeStage,
        halve: Callable[[int], nn.Module],
        double: Callable[[int], nn.Module],
        attends_once: bool = False,
    ) -> int:
        """Make the way down, the middle and the way up; returns the number of features at the end.

        widths: channels of each level; attends: which levels have attention; blocks: stages a level on the way down,
        one more on the way up; halve, double: layers of a number of channels; attends_once: on the way up only the
        last stage of a level has attention.
        """
        features = first.out_channels
        skips = [features]
        self.first = first
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()  # in the image's order
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(halve(features))
                skips.append(features)
            for _ in range(blocks):
                self.down.append(stage(features, width, attends[level]))
                features = width
                skips.append(features)
        self.middle.extend([stage(features, features, True), stage(features, features)])
        for level, width in reversed(list(enumerate(widths))):
            for block in range(blocks + 1):
                here = attends[level] and (block == blocks or not attends_once)
                self.up.append(stage(features + skips.pop(), width, here, joins=True))
                features = width
            if level > 0:
                self.up.append(double(features))
        return features

    @abstractmethod
    def embed(self, noise_label: Tensor, class_label: Tensor | None, augmentation: Tensor | None) -> Tensor:
        """The embedding that the stages read, before its last activation: (B, E).

        class_label: the number ``classes`` for no class; None for a network without classes. augmentation: None also
        for a network that takes none.
        """

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_label: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        class_label = labels_for(class_label, self.classes, noise_label)  # (B,) or None
        if augmentation is not None and not self.augmentation_labels:
            raise ValueError("augmentation needs a model with augmentation_labels, this one has 0")
        embedded = F.silu(self.embed(noise_label, class_label, augmentation))  # (B, E)
        h, skips = self.descend(x, embedded)  # (B, C, h, w), the smallest
        for layer in self.middle:
            h = layer(h, embedded)  # (B, C, h, w)
        for layer in self.up:
            if isinstance(layer, Stage) and layer.joins:
                h = torch.cat([h, skips.pop()], dim=1)  # (B, C + skipped, h, w)
            h = layer(h, embedded) if isinstance(layer, Stage) else layer(h)  # (B, C, h, w); doubled (B, C, 2h, 2w)
        out: Tensor = self.last(F.silu(self.last_norm(h)))  # (B, out_channels, H, W)
        return out

    def descend(self, x: Tensor, embedded: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features at the least resolution, (B, C, h, w), and those of every skip connection, first to last."""
        h = self.first(x)  # (B, width, H, W)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedded) if isinstance(layer, Stage) else layer(h)  # (B, C, h, w)
            skips.append(h)
        return h, skips


def require_sizes(
    resolution: int,
    classes: int,
    width: int,
    multipliers: Sequence[int],
    blocks: int,
    groups: int,
    dropout: float,
    channels_per_group: int = 1,
) -> None:
    """Refuse sizes that no U-Net can have: ValueError, whose message names the number."""
    positive = {"width": width, "blocks": blocks, "groups": groups, "channels_per_group": channels_per_group}
    for name, number in positive.items():
        require(number >= 1, f"{name} must be at least 1, got {number}")
    require(width <= MAX_WIDTH, f"width must be at most {MAX_WIDTH}, got {width}")
    require(blocks <= MAX_BLOCKS, f"blocks must be at most {MAX_BLOCKS}, got {blocks}")
    require(classes >= 0, f"classes must be at least 0 (0: no classes), got {classes}")
    some = len(multipliers) > 0 and min(multipliers) >= 1
    require(some, f"multipliers must be one or more numbers of at least 1, got {list(multipliers)}")
    require(width >= channels_per_group, f"width must be at least channels_per_group={channels_per_group}, got {width}")
    if channels_per_group == 1:
        require(width % groups == 0, f"width must be a multiple of groups={groups}, got {width}")
    for multiple in range(1, 2 * max(multipliers) + 1):  # of a level, and of a level beside its skip connection
        channels = multiple * width
        fits = channels % min(groups, channels // channels_per_group) == 0
        require(fits, f"width must be a multiple of groups={groups}, got {width}")
    shrink = 2 ** (len(multipliers) - 1)
    fits = resolution >= 1 and resolution % shrink == 0
    require(fits, f"multipliers needs data.resolution divisible by {shrink}, got {resolution}: use fewer levels")
    require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")


def require_heads(width: int, widths: Sequence[int], heads: int, head_width: int | None) -> None:
    """Refuse heads that do not divide the channels of a level with attention: ValueError."""
    if head_width is None:
        require(heads >= 1, f"heads must be at least 1, got {heads}")
        require(width % heads == 0, f"width must be a multiple of heads={heads}, got {width}")
        return
    require(head_width >= 1, f"head_width must be at least 1, got {head_width}")
    for channels in widths:
        fits = channels % head_width == 0
        require(fits, f"head_width must divide the {channels} channels of a level with attention, got {head_width}")
