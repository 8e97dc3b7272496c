"""Images of any origin, in a folder or an .npz, read as the grey levels of the data set that they are held against."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noising.data.image_data import ImageData
from noising.data.pictures import Pictures
from noising.data.stored_arrays import array_names, stored_array
from noising.errors import ConfigError, config_errors
from noising.metrics.reference_features import digest


class Samples(NamedTuple):
    """Images to measure."""

    pixels: Tensor  # (n, C, H, W) uint8, 0..levels-1
    class_labels: Tensor | None  # (n,) int64, the classes that they were made for, if the file says so
    card: dict[str, Any]


class GivenSamples:
    """Images at a path: of a folder in the order of their names, of an .npz in that of arr_0.

    The folder of a run of `noising sample` stands for its images. An .npz is as guided-diffusion writes it: arr_0
    (N, H, W, C) uint8 and, for images of classes, arr_1 (N,). Its header is read here, and no more of it than is
    measured later.

    Raises ConfigError if there is neither at the path.
    """

    def __init__(self, path: str) -> None:
        self.path, self._place = path, Path(path)
        if not self._place.exists():
            raise ConfigError(f"samples={path}: there is no such folder or file")
        if (self._place / "summary.json").is_file():  # of `noising sample`, with pictures of all images beside them
            stored = self._place / "samples.npz"
            self._place = stored if stored.is_file() else self._place / "images"
        if self._place.is_dir():
            return
        if self._place.suffix != ".npz" or not self._place.is_file():
            raise ConfigError(
                f"samples={path}: expected a folder of images, or an .npz file of arr_0 (N, H, W, C) uint8"
            )
        with config_errors("samples"), stored_array(self._place, "arr_0") as array:
            self._form, self._shape, self._dtype = array.form, array.shape, array.dtype

    def require_fitting(self, data: ImageData) -> None:
        """Raise ConfigError if the images of an .npz are of another type, size or channels than those of the data."""
        expected = (data.resolution, data.resolution, data.channels)
        if self._place.is_dir() or (self._dtype == np.uint8 and self._shape[1:] == expected):
            return
        shape = ", ".join(map(str, expected))
        raise ConfigError(
            f"samples={self.path}: arr_0 is {self._form}, not uint8 of shape (N, {shape}), which {data.name} has"
        )

    def read(self, data: ImageData, count: int, repeats: int) -> Samples:
        """The first `count · repeats` images.

        Raises ConfigError if there are fewer, or if one cannot be read or is of another size than the data's.
        """
        wanted, labels = count * repeats, None
        with config_errors("samples"):
            if self._place.is_dir():
                pictures = Pictures(self._place, data.resolution, data.channels, option=self.path, resize=False)
                paths = pictures.find()
                self._require_enough(len(paths), count, repeats)
                there, pixels = len(paths), pictures.read(paths[:wanted]).pixels
            else:
                self._require_enough(there := self._shape[0], count, repeats)
                with stored_array(self._place, "arr_0") as array:
                    pixels = np.ascontiguousarray(array.read(wanted).transpose(0, 3, 1, 2))
                labels = self._class_labels(data, wanted)
        grey = data.from_8bit(torch.from_numpy(pixels))
        return Samples(grey, labels, {"images_from": self.path, "images_there": there, "sha256": digest(grey)})

    def _require_enough(self, there: int, count: int, repeats: int) -> None:
        if there < count * repeats:
            raise ValueError(
                f"{self.path} holds {there} images, fewer than metrics.n={count} times metrics.repeats={repeats}: "
                "lower them"
            )

    def _class_labels(self, data: ImageData, wanted: int) -> Tensor | None:
        """The classes of arr_1 (n,); None if the data has no classes, or the file no arr_1."""
        if not data.classes or "arr_1" not in array_names(self._place):
            return None
        with stored_array(self._place, "arr_1") as array:
            if array.dtype.kind not in "iu" or array.shape != self._shape[:1]:
                raise ValueError(f"is {array.form}, not whole numbers, one for each image")
            labels = array.read(wanted).astype(np.int64)
            if not 0 <= labels.min() <= labels.max() < data.classes:
                raise ValueError(f"goes from {labels.min()} to {labels.max()}, of {data.classes} classes")
        return torch.from_numpy(labels)
