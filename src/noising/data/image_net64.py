"""ImageNet at 64x64, in any of the three forms in use: their bits/dim cannot be compared, so the card says which it is.

The test split is ImageNet's own validation set, and validation is `val_images` of the training set.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from noising.data.image_data import ImageData, Images, Splits
from noising.data.pictures import Pictures, class_numbers
from noising.data.stored_arrays import stored_array

SIDE = 64


class ImageNet64(ImageData):
    """1,280,167 training images of ImageNet, 1,000 held out of them for validation, and 50,000 test images; 64x64.

    What lies in `root` decides which ImageNet-64 it is:

    * train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz: that of Chrabaszcz et al. (2017), the whole
      image shrunk to a square by averaging over boxes, with 1,000 classes. Validation is the end of batch 10.
    * train_64x64/ and valid_64x64/: that of van den Oord et al. (2016), 1,281,149 and 49,999 .png without classes, of
      which older likelihoods are. Validation is evenly spaced among the training images, sorted by name.
    * train/ and val/ with a sub-folder of 64x64 images for each class: cut and shrunk by whoever made them from the
      full images, as for ADM and EDM. Validation is evenly spaced, as above.

    All images lie in memory, 15.7 GB.

    Chrabaszcz, Loshchilov & Hutter, "A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets" (2017).
    van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks" (2016).
    https://arxiv.org/abs/1707.08819 https://arxiv.org/abs/1601.06759

    Args:
        batch_size, flip: as in ImageData.
        root: the folder; the .npz may lie in sub-folders, as the official archives unpack.
        val_images: number of training images that are held out for validation.

    Raises:
        ValueError: for arguments out of range; in ``setup`` for a folder that holds none of the three, or more than
            one, or not all of one, and for an image of another size.
    """

    name = "imagenet64"
    declared = SIDE, 256

    def __init__(self, batch_size: int, root: str = "data/imagenet64", flip: bool = False, val_images: int = 1000):
        super().__init__(batch_size, flip)
        if val_images < 1:
            raise ValueError(f"val_images must be at least 1, got {val_images}")
        self.root, self.val_images = Path(root), val_images
        self.place = f"data.root={root}"

    def load(self) -> Splits:
        layouts = [kind(self.root, self.place) for kind in (Chrabaszcz2017, Oord2016, FromFullImages)]
        found = [layout for layout in layouts if layout.begun]
        if not found:
            ways = "; or ".join(f"{layout.files}" for layout in layouts)
            raise ValueError(f"{self.place}: there is no ImageNet-64: put there {ways}")
        if len(found) > 1:
            two = " and ".join(layout.title for layout in found)
            raise ValueError(f"{self.place}: it holds the ImageNet-64 {two}: give each a folder of its own")
        self.source = found[0].title
        return found[0].read(self.val_images)


class Layout(ABC):
    """One of the ImageNet-64s, and how it lies in a folder."""

    title: ClassVar[str]  # in cards
    files: ClassVar[str]  # what to put into the folder, for messages
    parts: ClassVar[Sequence[str]]  # files or folders that must all be there
    images: ClassVar[tuple[int, int] | None] = None  # numbers of training and of test images; None for any
    nested: ClassVar[bool] = False  # whether parts may lie in sub-folders

    def __init__(self, root: Path, place: str) -> None:
        self.root, self.place = root, place

    @property
    def begun(self) -> bool:
        """Whether any part of it is there."""
        return any(self._part(name) is not None for name in self.parts)

    def _part(self, name: str) -> Path | None:
        """The path of a part, in the folder or in a sub-folder; None if it is missing."""
        places = [self.root / name, *(sorted(self.root.glob(f"*/{name}")) if self.nested else ())]
        return next((path for path in places if path.exists()), None)

    def part(self, name: str) -> Path:
        """The path of a part. Raises ValueError if it is missing."""
        if (path := self._part(name)) is None:
            raise ValueError(f"{self.place}: {name} is missing: put there {self.files}")
        return path

    def require_count(self, kind: str, found: int) -> None:
        """Raise ValueError for another number of images than the set has; kind: training or test."""
        expected = found if self.images is None else self.images[kind == "test"]
        if found != expected:
            raise ValueError(f"{self.place}: {found:,} {kind} images are there, of {expected:,}: fetch the set again")

    @abstractmethod
    def read(self, val_images: int) -> Splits:
        """All images, with so many training images held out for validation."""

    def require_val_images(self, val_images: int, found: int) -> None:
        """Raise ValueError if validation would leave no image to train on."""
        if val_images >= found:
            raise ValueError(f"data.val_images={val_images} leaves none of the {found:,} training images: lower it")


class Chrabaszcz2017(Layout):
    """The .npz of the official archives: `data` (N, 12288) uint8, three planes of 64x64; `labels` (N,) from 1."""

    title = "of Chrabaszcz et al. (2017), whole images averaged over boxes"
    files = (
        "train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz (Chrabaszcz et al., 2017: "
        "Imagenet64_train_part1_npz.zip, _part2_npz.zip and Imagenet64_val_npz.zip of image-net.org, unpacked)"
    )
    parts = (*(f"train_data_batch_{number}.npz" for number in range(1, 11)), "val_data.npz")
    images = 1_281_167, 50_000
    nested = True
    classes = 1000

    def read(self, val_images: int) -> Splits:
        *train, test = map(self.part, self.parts)
        counts = [self._count(path) for path in (*train, test)]
        self.require_count("training", sum(counts[:-1]))
        self.require_count("test", counts[-1])
        self.require_val_images(val_images, sum(counts[:-1]))
        rest = self._read(train, counts[:-1])
        sizes = [len(rest.pixels) - val_images, val_images]
        assert rest.labels is not None
        fit, val = map(Images, torch.split(rest.pixels, sizes), torch.split(rest.labels, sizes))
        return Splits(fit, val, self._read([test], counts[-1:]), classes=self.classes)

    def _count(self, path: Path) -> int:
        with stored_array(path, "data") as array:
            if array.dtype != np.uint8 or len(array.shape) != 2 or array.shape[1] != 3 * SIDE**2:
                raise ValueError(f"is {array.form}, not uint8 of shape (N, {3 * SIDE**2})")
            return int(array.shape[0])

    def _read(self, paths: Sequence[Path], counts: Sequence[int]) -> Images:
        try:
            pixels = np.empty((sum(counts), 3, SIDE, SIDE), np.uint8)
        except MemoryError as error:
            raise ValueError(f"{self.place}: {sum(counts):,} images are more than the memory holds") from error
        labels = np.empty(sum(counts), np.int64)
        first = 0
        for path, count in zip(paths, counts, strict=True):
            place = slice(first, first + count)
            with stored_array(path, "data") as array:
                array.into(pixels[place])
            with stored_array(path, "labels") as array:
                if array.shape != (count,) or array.dtype.kind not in "iu":
                    raise ValueError(f"is {array.form}, not whole numbers of shape ({count},)")
                found = array.read()
                if count and not 1 <= found.min() <= found.max() <= self.classes:
                    raise ValueError(f"go from {found.min()} to {found.max()}, not from 1 to {self.classes}")
            labels[place] = found.astype(np.int64) - 1
            first += count
        return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


class _Folders(Layout):
    """A folder of training images and one of test images, all of 64x64."""

    def read(self, val_images: int) -> Splits:
        train, test = (Pictures(self.part(name), SIDE, resize=False) for name in self.parts)
        paths, test_paths = train.find(), test.find()
        self.require_count("training", len(paths))
        self.require_count("test", len(test_paths))
        self.require_val_images(val_images, len(paths))
        classes, test_classes = (self.classes(*of) for of in ((train, paths), (test, test_paths)))
        if classes != test_classes:
            raise ValueError(f"{self.place}: {' and '.join(self.parts)} have not the same sub-folders")
        held = {place * len(paths) // val_images for place in range(val_images)}
        fit, val = ([path for place, path in enumerate(paths) if (place in held) == within] for within in (False, True))
        return Splits(
            _images(train, fit, classes),
            _images(train, val, classes),
            _images(test, test_paths, classes),
            classes=len(classes),
        )

    def classes(self, pictures: Pictures, paths: Sequence[Path]) -> dict[str, int]:
        """The classes by the names of their sub-folders; empty if there are none."""
        return {}


class Oord2016(_Folders):
    """The .png of the archives that image-net.org/small once had."""

    title = "of van den Oord et al. (2016)"
    files = "the folders train_64x64 and valid_64x64 of .png (van den Oord et al., 2016)"
    parts = "train_64x64", "valid_64x64"
    images = 1_281_149, 49_999


class FromFullImages(_Folders):
    """Images that someone has made from the full ones, in a sub-folder for each class."""

    title = "made from the full images, in class folders"
    files = "the folders train and val with a sub-folder of 64x64 images for each class"
    parts = "train", "val"

    def classes(self, pictures: Pictures, paths: Sequence[Path]) -> dict[str, int]:
        return class_numbers(pictures.root, paths, "data=imagenet64")


def _images(pictures: Pictures, paths: Sequence[Path], classes: dict[str, int]) -> Images:
    pixels, _, _ = pictures.read(paths)
    labels = torch.tensor([classes[path.parts[0]] for path in paths]) if classes else None
    return Images(torch.from_numpy(pixels), labels)
