"""Embeddings of what the network is told: the noise label and the class; and Fourier features of the image.

Legend: B images, C channels, H and W the image's sides, E embedding width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sinusoids(nn.Module):
    """Sines and cosines of a number (B,) at wavelengths 2π to 2π · 10,000: (B, 2 · (waves // 2)).

    endpoint: the longest wavelength is reached by the last pair, as in DDPM; without it, by the one that would follow.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.5. https://arxiv.org/abs/1706.03762
    """

    frequencies: Tensor

    def __init__(self, waves: int, endpoint: bool = False) -> None:
        super().__init__()
        half = waves // 2
        steps = max(half - 1, 1) if endpoint else half
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32) / steps)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, number: Tensor) -> Tensor:
        angles = number.float()[:, None] * self.frequencies  # (B, waves / 2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, waves)


class FourierFeatures(nn.Module):
    """Sines and cosines of a number (B,) at frequencies drawn from N(0, scale²) and then fixed: (B, 2 · (waves // 2)).

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions" (2020).
    https://arxiv.org/abs/2006.10739
    """

    frequencies: Tensor

    def __init__(self, waves: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(waves // 2))

    def forward(self, number: Tensor) -> Tensor:
        angles = 2 * math.pi * number.float()[:, None] * self.frequencies  # (B, waves / 2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, waves)


class PixelFourierFeatures(nn.Module):
    """Sines and cosines of 2π 2^k times each channel: (B, C, H, W) to (B, 2 C · (number of exponents k), H, W).

    They tell neighbouring grey levels of an image apart. Kingma et al., "Variational Diffusion Models" (2021),
    appendix C. https://arxiv.org/abs/2107.00630
    """

    frequencies: Tensor

    def __init__(self, exponents: Sequence[int]) -> None:
        super().__init__()
        frequencies = 2 * math.pi * torch.tensor([2.0**exponent for exponent in exponents])
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[:, :, None] * self.frequencies[:, None, None]).flatten(1, 2)  # (B, C · exponents, H, W)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class NoiseEmbedding(nn.Module):
    """Sinusoids of the noise label (B,), then two layers: (B, E)."""

    def __init__(self, waves: int, embedding: int, endpoint: bool = False) -> None:
        super().__init__()
        self.sinusoids = Sinusoids(waves, endpoint)
        self.layers = nn.Sequential(nn.Linear(2 * (waves // 2), embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def forward(self, noise_label: Tensor) -> Tensor:
        embedded: Tensor = self.layers(self.sinusoids(noise_label))  # (B, waves) to (B, E)
        return embedded


class ClassEmbedding(nn.Embedding):
    """A row for each class, and the number ``classes`` or None for no class: (B,) long to (B, E).

    learns_none: no class has a row of its own, which label dropout trains; without it no class is zero.
    """

    def __init__(self, classes: int, embedding: int, learns_none: bool = True) -> None:
        super().__init__(classes + learns_none, embedding)
        self.classes, self.learns_none = classes, learns_none

    def forward(self, class_label: Tensor) -> Tensor:
        table = self.weight if self.learns_none else F.pad(self.weight, (0, 0, 0, 1))  # (classes + 1, E)
        return F.embedding(class_label, table)


def scaled_one_hot(class_label: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """√K in the column of the class of K, whose mean square is 1; zeros for the number K, no class: (B, K)."""
    return F.one_hot(class_label, classes + 1)[:, :classes].to(dtype) * math.sqrt(classes)


def labels_for(class_label: Tensor | None, classes: int, noise_label: Tensor) -> Tensor | None:
    """The classes that a `ClassEmbedding` is given, (B,): the number ``classes`` for None; None without classes.

    noise_label: (B,), for the number of images. Raises ValueError for a class where there are none.
    """
    if classes:
        none = torch.full(noise_label.shape, classes, device=noise_label.device)  # (B,)
        return none if class_label is None else class_label
    if class_label is not None:
        raise ValueError("class_label needs a model with classes, this one was built with classes=0")
    return None
