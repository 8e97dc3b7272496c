"""DINOv2's image encoder, in whose features distances follow people's judgement more closely than in Inception's.

Stein et al., "Exposing Flaws of Generative Model Evaluation Metrics and Their Unfair Treatment of Diffusion Models"
(2023). https://arxiv.org/abs/2306.04675
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noising.metrics.features import FeatureExtractor, three_channels

__all__ = ["DINOv2"]

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DINOv2(FeatureExtractor):
    """The class token of ViT-L/14; images resized to 224x224, bicubic with antialiasing, as EDM2's evaluation does."""

    name = "DINOv2 ViT-L/14"
    dims = 1024
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None, repo: str | None = None) -> None:
        """repo: a local clone of facebookresearch/dinov2, whose code builds the network; weights: a local copy of
        dinov2_vitl14_pretrain.pth. None downloads either, by torch.hub.

        Raises ValueError if they cannot be had.
        """
        super().__init__()
        self.network = _network(weights, repo)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = three_channels(pixels).to(torch.float32) / 255
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
        features: Tensor = self.network((x - self.mean) / self.std)
        return features.to(torch.float32)


def _network(weights: str | None, repo: str | None) -> Any:
    for name, path in (("dinov2_repo", repo), ("dinov2_weights", weights)):
        if path is not None and not Path(path).exists():
            raise ValueError(f"{name}={path}: there is nothing there")
    place, source = (repo, "local") if repo else ("facebookresearch/dinov2", "github")
    try:
        network: Any = torch.hub.load(  # type: ignore[no-untyped-call]
            place, "dinov2_vitl14", source=source, pretrained=weights is None, trust_repo=True
        )
    except Exception as error:  # of urllib, of torch.hub, of the repository's own code
        raise ValueError(
            f"DINOv2 cannot be had ({' '.join(str(error).split())}): give metrics.dinov2_repo=PATH, a clone of "
            "facebookresearch/dinov2, and metrics.dinov2_weights=PATH, its dinov2_vitl14_pretrain.pth"
        ) from error
    if weights is not None:
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ValueError(f"dinov2_weights={weights}: damaged, or not the weights of dinov2_vitl14") from error
    return network.eval().requires_grad_(False)
