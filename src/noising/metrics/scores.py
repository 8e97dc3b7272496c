"""Scores of features: kernel distance, Inception score, precision and recall, density and coverage, memorization.

The kernel distance and the Inception score are computed by torch-fidelity. The others are from nearest neighbours:
"real" are features of real images, a ball is centred at a feature and its radius is the distance to the k-th nearest
other feature of the same set.

    precision    share of the generated features in any real ball, k = 3
    recall       share of the real features in any generated ball, k = 3
    density      number of real balls around a generated feature over its expectation k, k = 5; may exceed 1
    coverage     share of the real balls that contain a generated feature, k = 5
    memorized    share of the generated features nearer to a real one than that is to any other real one

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019); Naeem et al.,
"Reliable Fidelity and Diversity Metrics for Generative Models" (2020); Alaa et al., "How Faithful is your Synthetic
Data?" (2021). https://arxiv.org/abs/1904.06991 https://arxiv.org/abs/2002.09797 https://arxiv.org/abs/2102.08921
"""

from typing import NamedTuple

import torch
from torch import Tensor

from noising.runs.declarations import Declaration

SCORES = {
    "precision": Declaration("precision: fraction that looks real", "", "higher", shown=False),
    "recall": Declaration("recall: fraction of real images covered", "", "higher", shown=False),
    "density": Declaration("density", "", "higher", shown=False),
    "coverage": Declaration("coverage", "", "higher", shown=False),
    "memorized": Declaration("fraction nearer to a training image than other training images", shown=False),
}
"""Declarations of the scores from nearest neighbours."""

SUBSET, SUBSETS = 1000, 100  # images of each subset of a kernel distance, at most, and the number of subsets


def kernel_distance(generated: Tensor, real: Tensor) -> float:
    """The squared maximum mean discrepancy with a cubic kernel, unbiased: the mean over 100 subsets of features (N, D).

    Where a subset would be all features on both sides, each would give the same, and one is taken.

    Bińkowski et al., "Demystifying MMD GANs" (2018). https://arxiv.org/abs/1801.01401
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(SUBSET, len(generated), len(real))
    subsets = 1 if len(generated) == len(real) == size else SUBSETS
    given = {"kid_subset_size": size, "kid_subsets": subsets, "verbose": False}
    result = kid_features_to_metric(generated.double(), real.double(), **given)
    return float(result[KEY_METRIC_KID_MEAN])


def inception_score(logits: Tensor, splits: int = 10) -> float:
    """exp E KL(p(class | image) ‖ p(class)), the mean over `splits` parts of the logits (N, K).

    Salimans et al., "Improved Techniques for Training GANs" (2016). https://arxiv.org/abs/1606.03498
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return float(isc_features_to_metric(logits.cpu(), splits)[KEY_METRIC_ISC_MEAN])


MANIFOLD = 3  # k of precision and recall
BALLS = 5  # k of density and coverage
CHUNK = 500  # rows of a matrix of distances that are computed at once


class Neighbours(NamedTuple):
    """The k nearest members of a reference set to each of N features."""

    distance: Tensor  # (N, k), the nearest first
    indices: Tensor  # (N, k) int64, in the reference set


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, float]:
    """precision, recall, density and coverage of generated features (N, D) and real ones (M, D).

    Raises ValueError if either set has no more than five.
    """
    smallest = min(len(generated), len(real))
    if smallest <= BALLS:
        raise ValueError(f"precision and recall need at least {BALLS + 1} images of each kind, got {smallest}")
    generated, real = generated.double(), real.double()
    real_radii, generated_radii = radii(real, MANIFOLD, BALLS), radii(generated, MANIFOLD)
    precise = inside = 0
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    for rows in torch.split(torch.arange(len(generated)), CHUNK):
        distance = torch.cdist(generated[rows], real)  # (rows, M)
        precise += int((distance <= real_radii[MANIFOLD]).any(dim=1).sum())
        recalled |= (distance <= generated_radii[MANIFOLD][rows, None]).any(dim=0)
        balls = distance <= real_radii[BALLS]
        inside += int(balls.sum())
        covered |= balls.any(dim=0)
    return {
        "precision": precise / len(generated),
        "recall": float(recalled.double().mean()),
        "density": inside / (BALLS * len(generated)),
        "coverage": float(covered.double().mean()),
    }


def radii(features: Tensor, *neighbours: int) -> dict[int, Tensor]:
    """Distance (N,) of each feature to its k-th nearest other, for each k in neighbours."""
    found = []
    for rows in torch.split(torch.arange(len(features)), CHUNK):
        distance = torch.cdist(features[rows], features)
        distance[torch.arange(len(rows)), rows] = -1  # itself comes first, for any rounding
        found.append(distance.topk(max(neighbours) + 1, largest=False).values)
    ordered = torch.cat(found)
    return {k: ordered[:, k] for k in neighbours}


def nearest(features: Tensor, reference: Tensor, count: int) -> Neighbours:
    """The `count` nearest of the reference (M, D) to each feature (N, D), or all M if there are fewer."""
    reference = reference.double()
    found = [
        torch.cdist(part.double(), reference).topk(min(count, len(reference)), largest=False)
        for part in torch.split(features, CHUNK)
    ]
    return Neighbours(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))


def same_as_nearest(found: Neighbours, reference_radii: Tensor) -> float:
    """The memorized share: near 0 for new images, 1 for copies. Alaa et al. (2021) call 1 minus this authenticity.

    reference_radii: (M,), distance of each reference image to its nearest other.
    """
    return float((found.distance[:, 0] < reference_radii[found.indices[:, 0]]).double().mean())
