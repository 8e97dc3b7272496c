"""Kernel distance and Inception score, by torch-fidelity's own code."""

from __future__ import annotations

from torch import Tensor

__all__ = ["inception_score", "kernel_distance"]

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
