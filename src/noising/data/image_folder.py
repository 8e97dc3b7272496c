"""Your own images: every picture under a folder, cropped and resized into memory.

They take images · channels · resolution² bytes, 1.2 GB for 100,000 colour images of 64x64. Nothing is cached on disk.
"""

import hashlib
import logging
from pathlib import Path

import torch

from noising.data.image_data import ImageData, Images, Splits, require_fractions
from noising.data.pictures import MAX_MEGAPIXELS, Pictures, class_numbers
from noising.errors import printable

log = logging.getLogger(__name__)

_LOGGED = 20  # the number of left-out images for which the log gives the reason
_REMEDY = "; repair or remove it, or leave such images out with data.skip_unreadable=true"


class ImageFolder(ImageData):
    """The images under ``root``, in sub-folders of any depth, of FORMATS.

    Hidden files and files without an image's suffix are passed over, and the first frame of an animation is taken.
    Rotation marks of cameras are applied, grey of 12 or 16 bits is rounded to 8, transparency is laid on white, grey
    becomes three equal channels (``channels=3``) and colour its luma (``channels=1``). Images are resized by Pillow's
    Lanczos filter, which averages over all the pixels it shrinks.

    An image's split is a function of a hash of its path below ``root``: no seed changes it, and images added later do
    not move others.

    Args:
        batch_size, flip: as in ImageData.
        root: the folder.
        resolution: side of the square images.
        channels: 3 (colour) or 1 (grey).
        crop: cut the central square out of an image that is not square; False refuses such an image.
        labels: the sub-folders directly in ``root`` are the classes, numbered in the order of their names.
        skip_unreadable: pass over images that cannot be read, or are not square where they must be, and count them.
        max_megapixels: the most million pixels that an image may have, a limit on the memory of decoding it: about 12
            bytes a pixel, whatever the file's size.
        val_fraction, test_fraction: expected share of the images in each split, each in (0, 1).

    Raises:
        ValueError: for arguments out of range; in ``setup`` for a folder or image that cannot be used.
    """

    name = "image_folder"
    resize = "Pillow Lanczos"

    def __init__(
        self,
        batch_size: int,
        root: str,
        resolution: int,
        channels: int = 3,
        crop: bool = True,
        labels: bool = False,
        flip: bool = False,
        skip_unreadable: bool = False,
        max_megapixels: float = MAX_MEGAPIXELS,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        super().__init__(batch_size, flip)
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        if max_megapixels <= 0:
            raise ValueError(f"max_megapixels must be positive, got {max_megapixels}")
        require_fractions(val_fraction, test_fraction)
        self.root = Path(root)
        self.place = f"data.root={self.root}"
        self.declared = resolution, 256
        self.labels, self.skip_unreadable = labels, skip_unreadable
        self.pictures = Pictures(self.root, resolution, channels, crop=crop, max_megapixels=max_megapixels)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._refused: list[str] = []  # why each image that is left out cannot be used

    def load(self) -> Splits:
        paths = self.pictures.find()
        classes = class_numbers(self.root, paths, "data.labels=true") if self.labels else {}
        parts: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
        for path in paths:
            parts[self._split(path)].append(path)
        for name, fraction in (("val", self.val_fraction), ("test", self.test_fraction)):
            if not parts[name]:
                raise ValueError(f"data.{name}_fraction={fraction} takes none of the {len(paths)} images: raise it")
        train, val, test = (self._read(part, classes) for part in parts.values())
        self.skipped = len(self._refused)
        if self.skipped:
            there = {int(label) for part in (train, val, test) if part.labels is not None for label in part.labels}
            for name, number in classes.items():
                if number not in there:
                    raise ValueError(
                        f"data.skip_unreadable=true leaves no image of class {self.root / name}: repair or remove it"
                    )
            more = [f"and {self.skipped - _LOGGED} more"] if self.skipped > _LOGGED else []
            reasons = "\n  ".join(map(printable, [*self._refused[:_LOGGED], *more]))
            log.warning("%d of %d images are left out:\n  %s", self.skipped, len(paths), reasons)
        return Splits(train, val, test, classes=len(classes))

    def _split(self, path: Path) -> str:
        digest = hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
        if place < self.test_fraction:
            return "test"
        return "val" if place < self.test_fraction + self.val_fraction else "train"

    def _read(self, paths: list[Path], classes: dict[str, int]) -> Images:
        pixels, usable, refused = self.pictures.read(paths, self.skip_unreadable, _REMEDY)
        self._refused += refused
        if not usable:
            raise ValueError(f"data.skip_unreadable=true leaves a split without images: {self._refused[-1]}")
        labels = torch.tensor([classes[path.parts[0]] for path in usable]) if classes else None
        return Images(torch.from_numpy(pixels), labels)
