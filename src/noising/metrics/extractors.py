"""Feature extractors: networks that map 8-bit images to feature vectors, and the features of whole sets."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureExtractor(nn.Module, ABC):
    """A network from 8-bit images (B, C, H, W) uint8 to features (B, dims) float32, each image by itself."""

    dims: int  # number of features
    name: str  # in cards and messages

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor: ...

    def class_logits(self, features: Tensor) -> Tensor | None:
        """Logits (B, K) of features (B, dims), for the classes of the network's training; None without classes."""
        return None

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the name and of every weight; distances compare only where it is equal."""
        sha = hashlib.sha256(f"{self.name} {self.dims}\n".encode())
        for name, weight in sorted(self.state_dict().items()):
            sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            sha.update(weight.cpu().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


@torch.no_grad()
def extract(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, dims) float32 on the host of batches (B, C, H, W) uint8, in evaluation mode.

    They are extracted on the device of the extractor's weights. Raises ValueError if a feature is not finite.
    """
    extractor.eval()
    device = next((weight.device for weight in extractor.state_dict().values()), torch.device("cpu"))
    features = torch.cat([extractor(pixels.to(device)).cpu() for pixels in batches])
    lost = int((~features.isfinite()).any(1).sum())
    if lost:
        raise ValueError(f"{lost} of {len(features)} images have features that are not finite")
    return features


def three_channels(pixels: Tensor) -> Tensor:
    """Images (B, 3, H, W) from grey or colour ones (B, 1 or 3, H, W). Raises ValueError for other channels."""
    if pixels.shape[1] not in (1, 3):
        raise ValueError(f"the extractor takes images of one channel or three, not of {pixels.shape[1]}")
    return pixels.expand(-1, 3, -1, -1)


LAYERS = (64, 192, 768, 2048)  # widths of the layers of `Inception` that can be chosen; the literature uses the last


class Inception(FeatureExtractor):
    """Pooled features of Inception v3 of 2015, from its last layer by default, and logits of the Inception score.

    Grey images are repeated to three channels; all are resized to 299x299 as in TensorFlow 1, without antialiasing.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017). https://arxiv.org/abs/1706.08500
    """

    name = "Inception v3 of 2015"

    def __init__(self, weights: str | None = None, layer: int = 2048) -> None:
        """weights: a local copy of torch-fidelity's weights-inception-2015-12-05-6726825d.pth; None downloads it.

        No code in the file is run. Raises ValueError if the weights cannot be had or are not Inception's.
        """
        super().__init__()
        if layer not in LAYERS:
            raise ValueError(f"layer must be one of {', '.join(map(str, LAYERS))}, got {layer}")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.dims = layer
        state = _downloaded() if weights is None else _read(weights)
        plain = io.BytesIO()  # torch-fidelity unpickles without restrictions: this copy holds nothing but tensors
        torch.save(state, plain)
        plain.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(layer)], feature_extractor_weights_path=plain
            )
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"{weights} does not hold the weights of Inception v3 (torch-fidelity's port)") from error

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(three_channels(pixels))[0]
        return features

    def class_logits(self, features: Tensor) -> Tensor | None:
        """Logits of the Inception score, without the bias as in Salimans et al. (2016); None for an earlier layer."""
        weight: Tensor = self.network.fc.weight
        return features.to(weight.device) @ weight.T if self.dims == LAYERS[-1] else None


def _downloaded() -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        with redirect_stderr(io.StringIO()):  # torch announces the download even where it then fails
            return torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, map_location="cpu", check_hash=True, progress=False
            )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the Inception weights cannot be downloaded ({error}): give metrics.inception_weights=PATH, a local copy "
            f"of torch-fidelity's {URL_INCEPTION_V3.rpartition('/')[2]}; or use metrics=fd, which needs no weights"
        ) from error


def _read(path: str) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"inception_weights={path}: there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type depends on the damage
        raise ValueError(f"inception_weights={path}: the file is damaged, or holds more than weights") from error


SIDE = 224  # of the images that DINOv2 is given
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, by channel, by which they are normalized


class DINOv2(FeatureExtractor):
    """The class token of DINOv2 ViT-L/14, of images resized to 224x224, bicubic and antialiased, as in EDM2's code."""

    name = "DINOv2 ViT-L/14"
    dims = 1024
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None, repo: str | None = None) -> None:
        """Build the network and load its weights.

        repo: a local clone of facebookresearch/dinov2, whose code builds the network; weights: a local copy of
        dinov2_vitl14_pretrain.pth. None downloads them by torch.hub.

        Raises ValueError if they cannot be had.
        """
        super().__init__()
        for name, path in (("dinov2_repo", repo), ("dinov2_weights", weights)):
            if path is not None and not Path(path).exists():
                raise ValueError(f"{name}={path}: there is no such path")
        place, source = (repo, "local") if repo else ("facebookresearch/dinov2", "github")
        try:
            network: Any = torch.hub.load(  # type: ignore[no-untyped-call]
                place, "dinov2_vitl14", source=source, pretrained=weights is None, trust_repo=True
            )
        except Exception as error:  # urllib, torch.hub and the repository's code raise errors of any type
            raise ValueError(
                f"DINOv2 cannot be loaded ({' '.join(str(error).split())}): give metrics.dinov2_repo=PATH, a clone of "
                "facebookresearch/dinov2, and metrics.dinov2_weights=PATH, its dinov2_vitl14_pretrain.pth"
            ) from error
        if weights is not None:
            try:
                network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            except Exception as error:
                raise ValueError(f"dinov2_weights={weights}: damaged, or not the weights of dinov2_vitl14") from error
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = three_channels(pixels).to(torch.float32) / 255
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
        features: Tensor = self.network((x - self.mean) / self.std)
        return features.to(torch.float32)
