"""The 1,797 handwritten digits (8x8, 17 grey levels) that scikit-learn ships: no download, and a CPU is enough."""

import numpy as np
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from noising.data.image_data import ImageData, Images, Splits


class Digits(ImageData):
    """360 test, 128 validation and 1,309 training digits, 10 classes.

    The split is one fixed permutation that no seed changes, drawn by numpy's RandomState, whose stream is the same in
    every version of numpy.

    Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits" (1998). https://doi.org/10.24432/C50P49
    """

    name = "digits"
    declared = 8, 17

    def load(self) -> Splits:
        digits = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.images))
        pixels = torch.from_numpy(digits.images[order].astype(np.uint8))[:, None]  # (1797, 1, 8, 8), 0..16
        labels = torch.from_numpy(digits.target[order].astype(np.int64))
        sizes = [360, 128, 1309]
        test, val, train = map(Images, torch.split(pixels, sizes), torch.split(labels, sizes))
        return Splits(train, val, test, levels=17, classes=10)
