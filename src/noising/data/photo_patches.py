"""32x32 colour patches of the two photographs that scikit-learn ships: natural images without a download."""

import numpy as np
import torch
from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]
from torch import Tensor

from noising.data.image_data import ImageData, Images, Splits

_SIDE = 32
_TRAIN, _VAL, _TEST = slice(0, 416), slice(416, 512), slice(512, 640)  # columns of each 427x640 photograph


class PhotoPatches(ImageData):
    """4,900 training, 78 validation and 104 test patches of a temple and a flower; no classes.

    The photographs are cut into upright strips: training patches lie in columns 0-415, on a stride; validation in
    416-511 and test in 512-639, edge to edge. No pixel is in two splits, and no pixel twice in validation or test,
    whose standard errors would otherwise be too small. The strips show different things, so that a large gap between
    training and test comes from the photographs: the set is for trying things out, not for comparing models.

    Args:
        batch_size, flip: as in ImageData.
        stride: pixels from one training patch to the next; 8 gives 4,900 patches, 4 gives four times as many.
    """

    name = "photo_patches"
    declared = _SIDE, 256

    def __init__(self, batch_size: int, flip: bool = False, stride: int = 8) -> None:
        super().__init__(batch_size, flip)
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        self.stride = stride

    def load(self) -> Splits:
        photos = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in load_sample_images().images]
        train, val, test = (
            Images(torch.cat([_patches(photo[:, :, columns], stride) for photo in photos]))
            for columns, stride in ((_TRAIN, self.stride), (_VAL, _SIDE), (_TEST, _SIDE))
        )
        return Splits(train, val, test)


def _patches(photo: Tensor, stride: int) -> Tensor:
    """Every patch on the stride: (3, H, W) -> (N, 3, 32, 32)."""
    windows = photo.unfold(1, _SIDE, stride).unfold(2, _SIDE, stride)  # (3, rows, columns, 32, 32)
    return windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
