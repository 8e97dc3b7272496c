"""The Inception network of the Fréchet Inception distance: the 2015 weights, as torch-fidelity ported them.

With any other weights, resizing or layer the number is not comparable with the literature's.
"""

from __future__ import annotations

import io
import urllib.error
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noising.metrics.features import FeatureExtractor, three_channels

__all__ = ["LAYERS", "Inception"]

LAYERS = (64, 192, 768, 2048)
"""Widths of the layers that can be seen; the literature's is the last."""


class Inception(FeatureExtractor):
    """Pooled features, 2048 unless another layer is asked for, and from those the logits of the Inception score.

    Grey images are repeated to three channels; all are resized to 299x299 as TensorFlow 1 did, without antialiasing.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017). https://arxiv.org/abs/1706.08500
    """

    name = "Inception v3 of 2015"

    def __init__(self, weights: str | None = None, layer: int = 2048) -> None:
        """weights: a local copy of torch-fidelity's weights-inception-2015-12-05-6726825d.pth; None downloads it.

        Raises ValueError if they cannot be had, or are not Inception's. No code in the file is run.
        """
        super().__init__()
        if layer not in LAYERS:
            raise ValueError(f"layer must be one of {', '.join(map(str, LAYERS))}, got {layer}")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.dims = layer
        state = _downloaded() if weights is None else _read(weights)
        plain = io.BytesIO()  # torch-fidelity would unpickle the file: what it gets holds tensors and nothing else
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
        """Of the Inception score: without the bias, as Salimans et al. (2016) had it. None but from the last layer."""
        weight: Tensor = self.network.fc.weight
        return features.to(weight.device) @ weight.T if self.dims == LAYERS[-1] else None


def _downloaded() -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        with redirect_stderr(io.StringIO()):  # torch announces what it then cannot do
            return torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, map_location="cpu", check_hash=True, progress=False
            )
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        name = URL_INCEPTION_V3.rpartition("/")[2]
        raise ValueError(
            f"the Inception weights cannot be downloaded ({error}): give metrics.inception_weights=PATH, "
            f"a local copy of torch-fidelity's {name}; or use metrics=fd, which needs none"
        ) from error


def _read(path: str) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"inception_weights={path}: there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage makes it stumble over
        raise ValueError(f"inception_weights={path}: damaged, or not a file of weights alone") from error
