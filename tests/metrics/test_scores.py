"""Precision and recall against torch-fidelity, density and coverage against their definitions; copies are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from noising.metrics import scores as neighbours
from noising.metrics.scores import kernel_distance, nearest, precision_recall, radii, same_as_nearest
from tests.metrics.helpers import normals


def by_definition(generated: Tensor, real: Tensor, k: int = 5) -> tuple[float, float]:
    """Naeem et al. (2020), equations 3 and 4, word by word."""
    between = np.linalg.norm(generated.numpy()[:, None] - real.numpy()[None], axis=2)  # (N, M)
    among = np.linalg.norm(real.numpy()[:, None] - real.numpy()[None], axis=2)
    radius = np.sort(among, axis=1)[:, k]
    inside = between < radius
    return float(inside.sum() / (k * len(generated))), float(inside.any(axis=0).mean())


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 0.5), (0.0, 2.0)])
def test_against_other_code(chunk: int, shift: float, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    generated, real = scale * normals(120, 4) + shift, normals(150, 4, seed=1)
    found = precision_recall(generated, real)
    theirs = prc_features_to_metric(generated, real, verbose=False)
    assert found["precision"] == pytest.approx(theirs[KEY_METRIC_PRECISION])
    assert found["recall"] == pytest.approx(theirs[KEY_METRIC_RECALL])
    assert (found["density"], found["coverage"]) == pytest.approx(by_definition(generated, real))


def test_extremes() -> None:
    real = normals(200, 4)
    assert precision_recall(real, real) == {
        "precision": 1,
        "recall": 1,
        "density": pytest.approx(1.2, rel=0.02),
        "coverage": 1,
    }
    assert precision_recall(real + 100, real) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    one = real[:1] + 1e-6 * normals(50, 4)  # one mode, over and over
    found = precision_recall(one, real)
    assert found["precision"] == 1
    assert found["recall"] < 0.01
    assert found["coverage"] < 0.1
    with pytest.raises(ValueError, match=r"^precision and recall need at least 6 images of each kind, got 5$"):
        precision_recall(real[:5], real)


def test_radii_do_not_count_the_image_itself() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [3.0]], dtype=torch.float64) + 1e6
    found = radii(line, 1, 2)
    assert found[1].tolist() == [1, 1, 0, 0]
    assert found[2].tolist() == [3, 2, 2, 2]


def test_copies_are_told_from_new_images() -> None:
    training = normals(300, 8)
    radius = radii(training, 1)[1]
    copies, new = training[:100] + 1e-3 * normals(100, 8, seed=1), normals(2000, 8, seed=2)
    found = nearest(copies, training, 3)
    assert torch.equal(found.indices[:, 0], torch.arange(100))
    assert found.distance.shape == (100, 3)
    assert same_as_nearest(found, radius) == 1
    # a new one and its nearest are exchangeable but for the new one's not being among 300 that a radius looks at
    assert 0.3 < same_as_nearest(nearest(new, training, 1), radius) < 0.6
    assert same_as_nearest(nearest(new + 50, training, 1), radius) == 0
    assert nearest(new[:3], training[:2], 5).indices.shape == (3, 2)


def test_a_kernel_distance_of_a_thousand_is_of_all_of_them() -> None:
    """Subsets are of 1,000: of as many features each is the whole set, and the mean is the unbiased statistic."""
    generated, real = normals(1000, 2) + 0.2, normals(1000, 2, seed=1)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 2 + 1) ** 3

    among = sum((kernel(x, x).sum() - kernel(x, x).trace()) / (1000 * 999) for x in (generated.double(), real.double()))
    expected = float(among - 2 * kernel(generated.double(), real.double()).mean())
    assert kernel_distance(generated, real) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "subset"), [(1300, 1200, 1000), (60, 90, 60)])
def test_a_kernel_distance_is_over_subsets_of_a_thousand_or_of_all_there_are(n: int, m: int, subset: int) -> None:
    generated, real = normals(n, 2) + 0.2, normals(m, 2, seed=1)
    theirs = kid_features_to_metric(generated.double(), real.double(), kid_subset_size=subset, verbose=False)
    assert kernel_distance(generated, real) == theirs[KEY_METRIC_KID_MEAN]


def test_six_images_are_enough() -> None:
    found = precision_recall(normals(6, 2), normals(6, 2, seed=1))
    assert (found["density"], found["coverage"]) == pytest.approx(by_definition(normals(6, 2), normals(6, 2, seed=1)))
