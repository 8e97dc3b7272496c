"""A schedule, a network, a data set and a metric of one's own: each is a single class."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

import noising as nz


class Logistic(nz.Schedule):
    """λ(t) = mean + scale · log((1 − u)/u), u rising from margin to 1 − margin: most times are at levels near the mean.

    For uniform t, λ has a logistic distribution. scale = 2 without margins is rectified flow's λ.
    """

    def __init__(self, mean: float = 0.0, scale: float = 1.5, margin: float = 0.001) -> None:
        super().__init__()  # variance-preserving; another geometry is super().__init__(nz.VarianceExploding())
        self.mean, self.scale, self.margin = mean, scale, margin

    def log_snr(self, t: Tensor) -> Tensor:
        u = self.margin + (1 - 2 * self.margin) * t
        return self.mean + self.scale * (torch.log1p(-u) - torch.log(u))


class Convolutions(nn.Module):
    """Residual convolutions at full resolution, each shifted by an embedding of the noise label.

    channels and out_channels are filled in from the data and the reverse variance; width and depth are options.
    """

    def __init__(self, channels: int, out_channels: int, width: int = 32, depth: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.shifts = nn.ModuleList(nn.Linear(16, width) for _ in range(depth))
        # dilation 1, 2, 4, 1, 2, ...: the network sees the whole of a small image
        dilations = [2 ** (number % 3) for number in range(depth)]
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.last = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        phases = (
            noise_label[:, None] / 1000 * math.pi * torch.arange(1, 9, device=x.device)
        )  # the label is about 0 to 1000
        embedding = torch.cat([phases.sin(), phases.cos()], dim=1)  # (B, 16)
        h = self.first(x)  # (B, width, H, W)
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            h = h + F.silu(block(h + shift(embedding)[:, :, None, None]))
        out: Tensor = self.last(h)  # (B, out_channels, H, W)
        return out


class Shapes(Dataset[tuple[Tensor, int]]):
    """Grey images (1, 16, 16) uint8 of a disc, a square or a ring, anywhere; image i is always the same."""

    classes = ("disc", "square", "ring")

    def __init__(self, images: int = 2000, side: int = 16) -> None:
        self.images, self.side = images, side

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        random = torch.Generator().manual_seed(index)
        radius = 2 + 3 * torch.rand(1, generator=random)
        centre = radius + (self.side - 1 - 2 * radius) * torch.rand(2, generator=random)
        offset = torch.stack(torch.meshgrid(*2 * [torch.arange(self.side)], indexing="ij")) - centre[:, None, None]
        label = index % len(self.classes)
        distance = offset.abs().amax(0) if label == 1 else offset.norm(dim=0)  # from the centre, (H, W)
        ink = radius - distance if label < 2 else 1 - (distance - radius).abs()  # positive within the shape
        return (255 * (ink + 0.5).clamp(0, 1)).round().byte()[None], label


class BrightnessDistance(Metric):
    """The distance between the brightness of samples and of real images, in grey levels: 0 if distributed alike.

    Brightness is an image's mean grey level; the distance is Wasserstein's, by 101 quantiles.
    """

    higher_is_better = False
    samples: list[Tensor]
    reals: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("samples", default=[], dist_reduce_fx="cat")
        self.add_state("reals", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """images: (B, 3, H, W) uint8; real: whether they are of the data set."""
        (self.reals if real else self.samples).append(images.double().mean(dim=(1, 2, 3)))

    def compute(self) -> Tensor:
        levels = torch.linspace(0, 1, 101, dtype=torch.float64)
        samples, reals = (dim_zero_cat(state).cpu().quantile(levels) for state in (self.samples, self.reals))
        return (samples - reals).abs().mean()
