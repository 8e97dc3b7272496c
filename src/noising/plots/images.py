"""Images as an array that a notebook shows as a picture."""

import io
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from noising.plots.grids import sample_grid


class ImageArray(np.ndarray[Any, np.dtype[np.uint8]]):
    """(n, H, W, C) uint8 images, as the field's evaluators read them; a notebook shows the first 64 as a grid.

    classes: image i is of class i mod classes, and each class has a row; 0 without classes. A part of the array, or
    what is computed from it, is a picture too while it has this shape and type.
    """

    classes: int

    def __new__(cls, images: NDArray[np.uint8], classes: int = 0) -> Self:
        array = np.asarray(images, dtype=np.uint8).view(cls)
        array.classes = classes
        return array

    def __array_finalize__(self, source: object) -> None:
        self.classes = 0  # a part of the images is in another order

    def __repr__(self) -> str:
        if not self._has_picture:
            return super().__repr__()
        count, height, width, channels = self.shape
        return f"ImageArray({count} images of {height}x{width}x{channels}, uint8)"

    @property
    def _has_picture(self) -> bool:
        return self.ndim == 4 and self.dtype == np.uint8 and len(self) > 0 and self.shape[3] in (1, 3)

    @property
    def picture(self) -> Image.Image | None:
        """The grid; None for an array of another shape or type."""
        if not self._has_picture:
            return None
        return Image.fromarray(sample_grid(torch.from_numpy(np.array(self)).permute(0, 3, 1, 2), self.classes))

    def _repr_png_(self) -> bytes | None:
        """The picture as a notebook takes it."""
        if (picture := self.picture) is None:
            return None
        file = io.BytesIO()
        picture.save(file, "png")
        return file.getvalue()
