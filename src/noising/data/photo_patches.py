"""Square colour patches of the two photographs that scikit-learn ships: natural images without a download."""

import numpy as np
import torch
from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]
from torch import Tensor

from noising.data.image_data import ImageData, Images, Splits
from noising.errors import require

_TRAIN, _VAL, _TEST = slice(0, 416), slice(416, 512), slice(512, 640)  # columns of each 427x640 photograph
_LARGEST = 96  # columns of the narrowest split


class PhotoPatches(ImageData):
    """4,900 training, 78 validation and 104 test patches of a temple (class 0) and a flower (class 1).

    The photographs are cut into upright strips: training patches lie in columns 0-415, on a stride; validation in
    416-511 and test in 512-639, edge to edge. No pixel is in two splits, and no pixel twice in validation or test,
    whose standard errors would otherwise be too small. The strips show different things, so that a large gap between
    training and test comes from the photographs: the set is for trying things out, not for comparing models.

    Args:
        batch_size, flip: as in ImageData.
        stride: pixels from one training patch to the next; 8 gives 4,900 patches, 4 gives four times as many.
        resolution: side of a patch; at 16 there are 5,304 training, 312 validation and 416 test patches.
    """

    name = "photo_patches"

    def __init__(self, batch_size: int, flip: bool = False, stride: int = 8, resolution: int = 32) -> None:
        super().__init__(batch_size, flip)
        require(stride >= 1, f"stride must be at least 1, got {stride}")
        require(1 <= resolution <= _LARGEST, f"resolution must be from 1 to {_LARGEST}, got {resolution}")
        self.stride, self.side = stride, resolution
        self.declared = resolution, 256

    def load(self) -> Splits:
        photos = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in load_sample_images().images]
        train, val, test = (
            self._cut([photo[:, :, columns] for photo in photos], stride)
            for columns, stride in ((_TRAIN, self.stride), (_VAL, self.side), (_TEST, self.side))
        )
        return Splits(train, val, test, classes=len(photos))

    def _cut(self, strips: list[Tensor], stride: int) -> Images:
        """Every patch on the stride of strips (3, H, W), each with the number of its strip."""
        patches = [_patches(strip, self.side, stride) for strip in strips]
        labels = [torch.full((len(cut),), number) for number, cut in enumerate(patches)]
        return Images(torch.cat(patches), torch.cat(labels))


def _patches(photo: Tensor, side: int, stride: int) -> Tensor:
    """Every patch on the stride: (3, H, W) -> (N, 3, side, side)."""
    windows = photo.unfold(1, side, stride).unfold(2, side, stride)  # (3, rows, columns, side, side)
    return windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
