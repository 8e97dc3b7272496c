"""Kernel distance and Inception score, by torch-fidelity's own code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Neighbours",
    "inception_score",
    "kernel_distance",
    "nearest",
    "precision_recall",
    "radii",
    "same_as_nearest",
]


SUBSET = 1000
"""Images of each of the 100 subsets of a kernel distance, if there are as many."""


def kernel_distance(generated: Tensor, real: Tensor) -> float:
    """The squared maximum mean discrepancy with a cubic kernel, unbiased: the mean of 100 subsets of features (N, D).

    Bińkowski et al., "Demystifying MMD GANs" (2018). https://arxiv.org/abs/1801.01401
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(SUBSET, len(generated), len(real))
    result = kid_features_to_metric(generated.double(), real.double(), kid_subset_size=size, verbose=False)
    return float(result[KEY_METRIC_KID_MEAN])


def inception_score(logits: Tensor, splits: int = 10) -> float:
    """exp E KL(p(class | image) ‖ p(class)), the mean of ten splits of logits (N, K).

    Salimans et al., "Improved Techniques for Training GANs" (2016). https://arxiv.org/abs/1606.03498
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return float(isc_features_to_metric(logits.cpu(), splits)[KEY_METRIC_ISC_MEAN])


MANIFOLD = 3
"""k of precision and recall."""
BALLS = 5
"""k of density and coverage."""
CHUNK = 500
"""Rows of a matrix of distances that are held at once."""


class Neighbours(NamedTuple):
    """The nearest of a reference set to each of N features."""

    distance: Tensor  # (N, k), the nearest first
    indices: Tensor  # (N, k) int64, in the reference set


def precision_recall(generated: Tensor, real: Tensor) -> dict[str, float]:
    """precision, recall, density and coverage of features (N, D) against (M, D).

    precision: the part of the generated within some real image's ball, whose radius reaches the third-nearest other
    real one; recall: the same with the roles exchanged. density: in how many real balls a generated one lies, over
    how many would be expected; may pass 1. coverage: the part of the real balls in which a generated one lies; both
    with the fifth-nearest.

    Raises ValueError if either set has no more than five.
    """
    smallest = min(len(generated), len(real))
    if smallest <= BALLS:
        raise ValueError(f"precision and recall need at least {BALLS + 1} images of each kind, got {smallest}")
    generated, real = generated.double(), real.double()
    real_radii, generated_radii = radii(real, MANIFOLD, BALLS), radii(generated, MANIFOLD)
    precise = inside = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
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
    """k -> (N,), the distance of each feature to its k-th nearest other."""
    largest_k = max(neighbours)
    found = []
    for rows in torch.split(torch.arange(len(features)), CHUNK):
        distance = torch.cdist(features[rows], features)
        distance[torch.arange(len(rows)), rows] = -1  # itself comes first, whatever the rounding
        found.append(distance.topk(largest_k + 1, largest=False).values)
    ordered = torch.cat(found)
    return {k: ordered[:, k] for k in neighbours}


def nearest(features: Tensor, reference: Tensor, count: int) -> Neighbours:
    """The `count` nearest of the reference (M, D) to each of (N, D), or all M if they are fewer."""
    reference = reference.double()
    found = [
        torch.cdist(part.double(), reference).topk(min(count, len(reference)), largest=False)
        for part in torch.split(features, CHUNK)
    ]
    return Neighbours(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))


def same_as_nearest(found: Neighbours, reference_radii: Tensor) -> float:
    """The part of the features that are nearer to a reference image than that one is to any other of its kind.

    reference_radii: (M,), of each reference image to its nearest other. Near 0 for images that are new, 1 for copies.
    Alaa et al., "How Faithful is your Synthetic Data?" (2021), whose authenticity is 1 less this.
    https://arxiv.org/abs/2102.08921
    """
    return float((found.distance[:, 0] < reference_radii[found.indices[:, 0]]).double().mean())
