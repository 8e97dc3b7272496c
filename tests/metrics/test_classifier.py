"""The classifier knows digits, is the same every time, and its features tell digits from what only looks alike."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from noising.data.digits import Digits
from noising.data.image_data import Images, Splits
from noising.metrics import classifier as module
from noising.metrics.classifier import Classifier, fit_classifier
from noising.metrics.extractors import FeatureExtractor
from noising.metrics.statistics import FeatureStatistics, frechet_distance
from tests.metrics.helpers import feature_statistics


@pytest.fixture(scope="module")
def digits() -> Splits:
    """In 8 bits."""
    data = Digits(batch_size=1)
    data.setup()
    splits = (Images(data.to_8bit(pixels), labels) for pixels, labels in (data.train, data.val, data.test))
    return Splits(*splits, classes=data.classes)


@pytest.fixture(scope="module")
def classifier(digits: Splits) -> Classifier:
    return fit_classifier(*digits.train, digits.classes)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 10)


def drawn(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# What it learned


def test_it_knows_digits_that_it_has_not_seen(classifier: Classifier, digits: Splits) -> None:
    """0.997, 0.997 and 1.000 with seeds 0, 1 and 2."""
    right = classifier.class_logits(classifier(digits.test.pixels)).argmax(1) == digits.test.labels
    assert float(right.float().mean()) >= 0.985


def test_distance_tells_digits_from_blurred_ones_and_from_noise(classifier: Classifier, digits: Splits) -> None:
    """3.8 for digits; 47 for blurred digits and about 157 for noise."""
    some = digits.train.pixels[:360]
    blurred = torch.from_numpy(gaussian_filter(some.float().numpy(), (0, 0, 0.7, 0.7))).round().to(torch.uint8)

    def distance(pixels: Tensor) -> float:
        real, fake = (feature_statistics(classifier, batches.split(100)) for batches in (digits.test.pixels, pixels))
        return frechet_distance(real, fake)

    assert distance(some) < 6
    assert distance(some) < distance(blurred) / 5
    assert distance(some) < distance(drawn(360, 1, 8, 8)) / 15


@pytest.mark.usefixtures("few_steps")
def test_it_is_at_rest(digits: Splits) -> None:
    classifier = fit_classifier(*digits.train, 10)
    assert not classifier.training
    assert not any(weight.requires_grad for weight in classifier.parameters())
    pixels = digits.test.pixels[:50]
    torch.testing.assert_close(classifier(pixels)[7:8], classifier(pixels[7:8]))  # no image depends on its batch


# Determinism


@pytest.mark.usefixtures("few_steps")
def test_equal_arguments_give_equal_bits_and_the_global_generator_stays(digits: Splits) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fit_classifier(*digits.train, 10)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.inference_mode():  # as in Lightning's evaluation
        again = fit_classifier(*digits.train, 10)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    other = fit_classifier(*digits.train, 10, seed=1)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert first.digest == again.digest != other.digest


def test_the_digest_changes_with_every_weight_and_with_nothing_else(classifier: Classifier) -> None:
    digest = classifier.digest
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    same = deepcopy(classifier).train().requires_grad_(True)
    assert same.digest == digest
    for name, weight in same.state_dict().items():
        before = weight.clone()
        weight.view(-1)[-1:].add_(1)
        assert same.digest != digest, name
        weight.copy_(before)
    assert same.digest == digest


def test_the_digest_tells_names_shapes_and_kinds() -> None:
    class Weights(FeatureExtractor):
        dims, name = 1, "weights"

        def __init__(self, **weights: Tensor) -> None:
            super().__init__()
            for name, weight in weights.items():
                self.register_buffer(name, weight)

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1)[:, :1].float()

    zeros = torch.zeros(2, 3)
    others = [Weights(a=zeros.T), Weights(b=zeros), Weights(a=zeros.int()), Weights(a=zeros.flatten())]
    assert len({Weights(a=zeros).digest, *(weights.digest for weights in others)}) == 5
    turned = torch.arange(6.0).view(3, 2).T  # not contiguous
    assert Weights(a=turned).digest == Weights(a=turned.contiguous()).digest


# The network


@pytest.mark.parametrize(("channels", "side"), [(1, 4), (1, 8), (3, 9), (1, 28), (3, 32)])
def test_images_of_every_size(channels: int, side: int) -> None:
    made = Classifier(channels, side, classes=7).eval()
    pixels = drawn(5, channels, side, side)
    assert made(pixels).shape == (5, made.dims)
    assert made(pixels).dtype == torch.float32
    assert made.class_logits(made(pixels)).shape == (5, 7)


def test_the_first_and_last_level_are_the_ends_of_the_scale() -> None:
    seen: list[Tensor] = []
    made = Classifier(1, 8, 2).eval()
    made.convolutions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    pixels[..., 4:] = 255
    made(pixels)
    assert torch.equal(seen[0][..., :4], torch.full((1, 1, 8, 4), -1.0))
    assert torch.equal(seen[0][..., 4:], torch.full((1, 1, 8, 4), 1.0))


def test_shifts_move_each_image_whole() -> None:
    pixels = torch.zeros(200, 2, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 3, 5], pixels[:, 1, 4, 2] = 9, 7
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moved = module._shifted(pixels)
    places = moved.nonzero()[:, 1:].view(200, 2, 3) - torch.tensor([[0, 3, 5], [1, 4, 2]])
    assert torch.equal(places[:, 0], places[:, 1])  # both channels together
    assert {tuple(place) for place in places[:, 0, 1:].tolist()} == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_statistics_are_of_all_features_in_evaluation_mode() -> None:
    made = Classifier(1, 8, 10).train()
    pixels = drawn(50, 1, 8, 8)
    found = feature_statistics(made, pixels.split(15))
    whole = FeatureStatistics.from_features(made.eval()(pixels))
    assert found.count == 50
    torch.testing.assert_close(found.mean, whole.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=0, atol=1e-6)


# One line each


@pytest.mark.parametrize(
    ("labels", "classes", "line"),
    [
        (None, 10, "a classifier needs one label for each image: 3 images, labels: none"),
        ([0, 1], 10, "a classifier needs one label for each image: 3 images, labels: 2"),
        ([0, 0, 0], 1, "a classifier needs at least 2 classes, got 1"),
        ([0, 1, 2], 2, "labels of 2 classes must be 0..1, got 0..2"),
        ([-1, 0, 1], 2, "labels of 2 classes must be 0..1, got -1..1"),
    ],
)
def test_labels_that_cannot_be_learned(labels: list[int] | None, classes: int, line: str) -> None:
    given = None if labels is None else torch.tensor(labels)
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        fit_classifier(drawn(3, 1, 8, 8), given, classes)


def test_networks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^resolution must be at least 4, got 3$"):
        Classifier(1, 3, 10)
    with pytest.raises(ValueError, match=r"^a classifier needs square images, got 8x9$"):
        fit_classifier(drawn(3, 1, 8, 9), torch.tensor([0, 1, 0]), 2)


@pytest.mark.parametrize(
    ("side", "strides", "end"), [(4, [1, 1], 4), (8, [1, 2], 4), (16, [2, 2], 4), (28, [2, 2, 2], 4), (48, [2] * 4, 3)]
)
def test_the_features_are_those_of_one_architecture(side: int, strides: list[int], end: int) -> None:
    """A Fréchet distance in these features means what it meant before as long as they are made in the same way."""
    classifier = Classifier(3, side, 10)
    convolutions = [layer[0] for layer in classifier.convolutions]  # type: ignore[index]
    assert [layer.stride[0] for layer in convolutions] == strides
    assert [layer.out_channels for layer in convolutions] == [32] + [64] * (len(strides) - 1)
    assert convolutions[0].in_channels == 3
    assert classifier.project[1].in_features == 64 * end**2
    assert classifier.classify.in_features == classifier.dims == 64


def test_they_are_learned_by_one_recipe(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 steps of 128 images by AdamW, its rate one cycle up to 0.005, labels smoothed by 0.1."""
    losses: list[tuple[int, dict[str, Any]]] = []
    made: dict[str, dict[str, Any]] = {}
    cross_entropy = torch.nn.functional.cross_entropy

    def entropy(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        losses.append((len(labels), options))
        return cross_entropy(logits, labels, **options)

    def noted(kind: Any) -> Any:
        def make(*given: Any, **options: Any) -> Any:
            made[kind.__name__] = options
            return kind(*given, **options)

        return make

    monkeypatch.setattr(module.F, "cross_entropy", entropy)
    for holder, kind in (
        (torch.optim, torch.optim.AdamW),
        (torch.optim.lr_scheduler, torch.optim.lr_scheduler.OneCycleLR),
    ):
        monkeypatch.setattr(holder, kind.__name__, noted(kind))
    fit_classifier(digits.train.pixels[:200, :, :4, :4], digits.train.labels[:200], 10)  # type: ignore[index]
    assert losses == [(128, {"label_smoothing": 0.1})] * 600
    assert made == {"AdamW": {"weight_decay": 0.05}, "OneCycleLR": {"max_lr": 0.005, "total_steps": 600}}


@pytest.mark.parametrize("side", [8, 16, 28])
def test_shifted_images_are_cut_from_the_image_with_its_edge_repeated(side: int) -> None:
    far = side // 8
    pixels = drawn(300, 2, side, side)
    padded = torch.nn.functional.pad(pixels.float(), (far,) * 4, mode="replicate").to(torch.uint8)
    found = set()
    for image, whole in zip(module._shifted(pixels), padded, strict=True):
        places = [(y, x) for y in range(2 * far + 1) for x in range(2 * far + 1)]
        same = [(y, x) for y, x in places if torch.equal(image, whole[:, y : y + side, x : x + side])]
        assert len(same) == 1
        found |= {*same}
    assert len(found) == (2 * far + 1) ** 2  # all come


@pytest.mark.gpu
def test_logits_are_made_where_the_classifier_is(digits: Splits) -> None:
    """Features come back to the host, where they are gathered."""
    classifier = fit_classifier(digits.train.pixels[:200], digits.train.labels[:200], 10)
    pixels = digits.test.pixels[:20]
    features = classifier(pixels).detach()
    torch.testing.assert_close(classifier.cuda().class_logits(features).cpu(), classifier.cpu().class_logits(features))
