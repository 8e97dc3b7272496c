"""Inception and DINOv2, offline: weights that a test makes, in the architecture of the real ones."""

from __future__ import annotations

import os
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from noising.metrics.extractors import DINOv2, Inception, extract, three_channels
from noising.metrics.scores import inception_score, kernel_distance
from noising.metrics.statistics import frechet_distance
from tests.metrics.helpers import statistics_of


class Bytes(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def images(seed: int, count: int = 70, channels: int = 3) -> Tensor:
    """Smooth colours, different from seed to seed."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse ** (1 + seed), (16, 16), mode="bilinear")
    return (255 * fine).round().to(torch.uint8)


def test_distances_are_torch_fidelitys(inception_weights: Path) -> None:
    """The features of images are, and so are the distances of as many features as a covariance needs."""
    few = images(0, 6)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["64"], feature_extractor_weights_path=inception_weights
    )
    extractor = Inception(str(inception_weights), layer=64)
    seen = extract(extractor, torch.split(few, 4))
    assert seen.shape == (6, 64)
    torch.testing.assert_close(seen, theirs(few)[0], rtol=1e-5, atol=1e-6)
    mean, std = seen.double().mean(0), seen.double().std(0)
    drawn = torch.randn(2, 70, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair = [mean + std * (drawn[0] + 0.5), mean + std * drawn[1]]
    statistics = [fid_features_to_statistics(features) for features in pair]
    fid = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    kid = kid_features_to_metric(*pair, kid_subset_size=70, verbose=False)[KEY_METRIC_KID_MEAN]
    assert frechet_distance(*map(statistics_of, pair)) == pytest.approx(fid, rel=1e-3)
    assert kernel_distance(*pair) == pytest.approx(kid, rel=1e-3)
    grey = images(0, 2, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


@pytest.mark.slow
def test_inception_score_is_torch_fidelitys(inception_weights: Path) -> None:
    pixels = images(0, 20)
    theirs = torch_fidelity.calculate_metrics(
        input1=Bytes(pixels),
        isc=True,
        feature_extractor_weights_path=str(inception_weights),
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=10,
    )
    extractor = Inception(str(inception_weights))
    logits = extractor.class_logits(extract(extractor, torch.split(pixels, 10)))
    assert logits is not None
    assert inception_score(logits) == pytest.approx(theirs["inception_score_mean"], rel=1e-3)


def test_logits_are_the_last_layers_alone(inception_weights: Path) -> None:
    """By the weights without the bias, as Salimans et al. (2016) have it."""
    features = torch.rand(3, 2048)
    last, first = (Inception(str(inception_weights), layer) for layer in (2048, 64))
    logits = last.class_logits(features)
    assert logits is not None
    torch.testing.assert_close(logits, F.linear(features, last.network.fc.weight), rtol=1e-5, atol=1e-5)
    assert first.class_logits(torch.rand(3, 64)) is None


def test_the_score_of_known_answers() -> None:
    """K classes, each surely shown equally often: exp(log K) = K; nothing shown: 1."""
    sure = 1e3 * torch.eye(5).repeat(100, 1)
    assert inception_score(sure) == pytest.approx(5, rel=0.05)  # ten splits of 50, shuffled
    assert inception_score(torch.zeros(500, 5)) == pytest.approx(1)


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "broken_into"),)


def test_weights_that_are_none(inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = inception_weights.read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"fc.weight": Malicious(tmp_path)}, tmp_path / "code.pth")
    cases = {
        "nowhere.pth": "there is no such file",
        "half.pth": "damaged, or holds more than weights",
        "code.pth": "damaged, or holds more than weights",
        "other.pth": "does not hold the weights of Inception v3",
    }
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words):
            Inception(str(tmp_path / name), layer=64)
    assert not (tmp_path / "broken_into").exists()
    with pytest.raises(ValueError, match=r"^layer must be one of 64, 192, 768, 2048, got 65$"):
        Inception(str(inception_weights), layer=65)

    def refuse(*given: Any, **options: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(ValueError, match=r"cannot be downloaded.*give metrics\.inception_weights=PATH"):
        Inception()


HUB = """
import torch

dependencies = ["torch"]


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        return self.scale * x.mean((2, 3)).repeat(1, 342)[:, :1024]


def dinov2_vitl14(pretrained=True):
    assert not pretrained
    return Mean()
"""


def test_dinov2_sees_what_its_repository_makes(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUB)
    torch.save({"scale": torch.full((1,), 3.0)}, tmp_path / "weights.pth")
    extractor = DINOv2(str(tmp_path / "weights.pth"), str(tmp_path))
    pixels = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    found = extract(extractor, [pixels])
    assert found.shape == (2, extractor.dims) == (2, 1024)
    white = 3 * (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(found[:, :3], white.expand(2, 3), rtol=1e-4, atol=0)
    assert not any(weight.requires_grad for weight in extractor.parameters())


def test_dinov2_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dinov2_weights=nowhere: there is no such path$"):
        DINOv2("nowhere")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"cannot be loaded.*give metrics\.dinov2_repo=PATH.*metrics\.dinov2_weights=PATH"
    ):
        DINOv2(str(tmp_path / "weights.pth"), str(tmp_path))
    (tmp_path / "hubconf.py").write_text(HUB)
    with pytest.raises(ValueError, match=r"damaged, or not the weights of dinov2_vitl14"):
        DINOv2(str(tmp_path / "weights.pth"), str(tmp_path))


def test_features_that_are_not_finite_and_channels_that_cannot_be_seen() -> None:
    class Nan(nn.Module):
        dims = 2

        def forward(self, pixels: Tensor) -> Tensor:
            return torch.where(pixels.flatten(1)[:, :2] > 3, torch.nan, 1.0)

    pixels = torch.tensor([1, 9, 2, 9]).to(torch.uint8).reshape(4, 1, 1, 1).repeat(1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"^2 of 4 images have features that are not finite$"):
        extract(Nan(), torch.split(pixels, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one channel or three, not of 4$"):
        three_channels(torch.zeros(1, 4, 2, 2))
