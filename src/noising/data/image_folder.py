"""Your own images: every picture under a folder, cropped and resized into memory.

They take images · channels · resolution² bytes, 1.2 GB for 100,000 colour images of 64x64. Nothing is cached on disk.
"""

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from noising.data.image_data import ImageData, Images, Splits, require_fractions
from noising.errors import printable

log = logging.getLogger(__name__)

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by content and not by name: Pillow would start Ghostscript for PostScript, say."""

_LOGGED = 20  # the number of left-out images for which the log gives the reason


@contextmanager
def _any_size() -> Iterator[None]:
    """Within it, Pillow has no limit of its own on an image's size."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


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
        max_megapixels: float = 64,
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
        self.side = resolution
        self.declared = resolution, 256
        self.mode = {1: "L", 3: "RGB"}[channels]
        self.crop, self.labels, self.skip_unreadable = crop, labels, skip_unreadable
        self.max_megapixels = max_megapixels
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._refused: list[str] = []  # why each image that is left out cannot be used

    def load(self) -> Splits:
        paths = self._find()
        classes = self._classes(paths) if self.labels else {}
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

    def _find(self) -> list[Path]:
        """The images' paths below root, sorted."""
        if not self.root.exists():
            raise ValueError(f"{self.place} does not exist")
        if not self.root.is_dir():
            raise ValueError(f"{self.place} is not a folder")
        suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
        files = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names if name[0] != ".")
        paths = [file.relative_to(self.root) for file in files if file.suffix.lower() in suffixes]
        if not paths:
            raise ValueError(f"{self.place} has no image in it or in its sub-folders")
        return sorted(paths, key=Path.as_posix)  # one order on every system

    def _classes(self, paths: list[Path]) -> dict[str, int]:
        for path in paths:
            if len(path.parts) == 1:
                raise ValueError(f"data.labels=true needs sub-folders, but {self.root / path} is in none")
        names = sorted({path.parts[0] for path in paths})
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and folder.name not in names and not folder.name.startswith("."):
                raise ValueError(f"data.labels=true makes each sub-folder a class, but {folder} has no image in it")
        return {name: number for number, name in enumerate(names)}

    def _split(self, path: Path) -> str:
        digest = hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
        if place < self.test_fraction:
            return "test"
        return "val" if place < self.test_fraction + self.val_fraction else "train"

    def _read(self, paths: list[Path], classes: dict[str, int]) -> Images:
        try:
            pixels = np.empty((len(paths), self.side, self.side, len(self.mode)), dtype=np.uint8)
        except (ValueError, MemoryError) as error:
            raise ValueError(
                f"data.resolution={self.side}: {len(paths)} images of that size do not fit in memory: lower it"
            ) from error

        def fill(place: int) -> str | None:
            try:
                pixels[place] = self._decode(self.root / paths[place])
            except ValueError as error:
                if not self.skip_unreadable:
                    remedy = "repair or remove it, or leave such images out with data.skip_unreadable=true"
                    raise ValueError(f"{error}; {remedy}") from error
                return str(error)
            return None

        # Threads are enough, because Pillow decodes outside the interpreter lock.
        with _any_size(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            refused = list(threads.map(fill, range(len(paths))))  # the list raises a thread's error here
        usable = [place for place, why in enumerate(refused) if why is None]
        if len(usable) < len(paths):
            self._refused += [why for why in refused if why is not None]
            if not usable:
                raise ValueError(f"data.skip_unreadable=true leaves a split without images: {self._refused[-1]}")
            pixels, paths = pixels[usable], [paths[place] for place in usable]
        labels = torch.tensor([classes[path.parts[0]] for path in paths]) if classes else None
        return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        """Read one image: (resolution, resolution, channels)."""
        if not path.is_file():  # opening a pipe would wait for whoever writes it
            raise ValueError(f"data.root: cannot read {path}: it is not a regular file")
        Image.init()  # all formats are known from here on
        try:
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as opened:
                millions = math.prod(opened.size) / 1e6  # known before anything is decoded
                if millions > self.max_megapixels:
                    raise ValueError(f"{millions:.0f} million pixels are more than data.max_megapixels")
                image = _eight_bits(opened).convert(self.mode)
        except UnidentifiedImageError as error:
            raise ValueError(f"data.root: cannot read {path}: it is not an image ({', '.join(FORMATS)})") from error
        except Exception as error:  # Pillow's readers raise nearly anything on a broken file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"data.root: cannot read {path}: {reason}") from error
        width, height = image.size
        if width != height and not self.crop:
            raise ValueError(f"data.crop=false needs square images, but {path} is {width}x{height}")
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Cut first: resize(box=...) would let the filter look at pixels outside of the square.
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((self.side, self.side), Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(self.side, self.side, len(self.mode))


def _eight_bits(opened: ImageFile.ImageFile) -> Image.Image:
    """Decode to 8 bits a channel without transparency, upright: 12 and 16 bits are rounded, clear is laid on white."""
    coding = _sample_coding(opened)  # known only before the image is loaded
    image = ImageOps.exif_transpose(opened)
    tags = opened.tag_v2 if isinstance(opened, TiffImageFile) else {}
    if 2 in tags.get(SAMPLEFORMAT, ()):
        raise ValueError("signed grey has no known range: save it with 8 or 16 unsigned bits")
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM")):
        # Not by Pillow's convert, which in many versions clips everything above 255 to white.
        deep, most = np.asarray(image).astype(np.int64), 4095 if coding == "I;12" else 65535
        grey = (2 * 255 * deep + most) // (2 * most)
        if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which Pillow sees to for 8 bits alone
            grey = 255 - grey
        if "transparency" in image.info:
            grey[deep == image.info["transparency"]] = 255
        return Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey has no known range: save it with 8 or 16 bits")
    if image.has_transparency_data:
        if "transparency" in image.info and coding == "RGB;16B":  # Pillow has dropped the lower bytes of the pixels
            raise ValueError("16-bit colour with a transparent colour: save it with an alpha channel, or with 8 bits")
        if coding in ("L;2", "L;4"):  # Pillow has scaled the pixels to 8 bits, and not the transparent grey
            image.info["transparency"] *= {"L;2": 85, "L;4": 17}[coding]
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB") if image.mode == "LAB" else image  # Pillow has no way from LAB to grey


def _sample_coding(opened: ImageFile.ImageFile) -> str:
    """Pillow's name for how the file holds its samples, such as `I;12` for 12 bits."""
    coding = opened.tile[0][3] if opened.tile else ""
    return str(coding[0] if isinstance(coding, tuple) and coding else coding)
