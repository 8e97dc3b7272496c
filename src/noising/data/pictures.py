"""Pictures below a folder or in a .zip, as square arrays of 8 bits: the one way from an image's file to pixels."""

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by content and not by name: Pillow would start Ghostscript for PostScript, say."""

MAX_MEGAPIXELS = 64.0  # of one image; decoding takes about 12 bytes a pixel
_SUBMITTED = 2**14  # images that wait for a thread at once
ENTRY = 2**26  # bytes that an image in a .zip may unfold to


@contextmanager
def _any_size() -> Iterator[None]:
    """Within it, Pillow has no limit of its own on an image's size."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


class Read(NamedTuple):
    """The pictures that were read, and why others were not."""

    pixels: NDArray[np.uint8]  # (N, channels, side, side)
    paths: list[Path]
    refused: list[str]


class Pictures:
    """Pictures below `root`, a folder or a .zip, at one size.

    Args:
        root: the folder or archive.
        side: of the square images.
        channels: 3 (colour) or 1 (grey).
        option: the option that names the root, for messages.
        crop: cut the central square out of an image that is not square; False refuses such an image.
        resize: resize to `side`, by Pillow's Lanczos filter; False refuses an image of another size.
        max_megapixels: the most million pixels that an image may have.
    """

    def __init__(
        self,
        root: Path,
        side: int,
        channels: int = 3,
        option: str = "data.root",
        crop: bool = True,
        resize: bool = True,
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> None:
        self.root, self.side, self.option = root, side, option
        self.mode = {1: "L", 3: "RGB"}[channels]
        self.crop, self.resize, self.max_megapixels = crop, resize, max_megapixels
        self._archive: zipfile.Path | None = None

    @property
    def place(self) -> str:
        """The option with its value, for messages."""
        return f"{self.option}={self.root}"

    def find(self) -> list[Path]:
        """Paths of the images below root, sorted by their names as text.

        Hidden files and files without an image's suffix are passed over. Raises ValueError if there is none.
        """
        if not self.root.exists():
            raise ValueError(f"{self.place} does not exist")
        if self.root.is_dir():
            files = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
            found = [file.relative_to(self.root) for file in files]
        elif self.root.suffix.lower() == ".zip":
            found = self._entries()
        else:
            raise ValueError(f"{self.place} is not a folder")
        suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
        paths = [path for path in found if path.name[0] != "." and path.suffix.lower() in suffixes]
        if not paths:
            raise ValueError(f"{self.place} has no image in it or in its sub-folders")
        return sorted(paths, key=Path.as_posix)  # one order on every system

    def _entries(self) -> list[Path]:
        try:
            archive = zipfile.ZipFile(self.root)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{self.place} is damaged, or no .zip ({error})") from error
        for entry in archive.infolist():
            if entry.file_size > ENTRY:
                size = f"{entry.file_size / 2**20:.0f} MiB"
                raise ValueError(f"{self.place}: {entry.filename} unfolds to {size}, more than any image here needs")
        self._archive = zipfile.Path(archive)
        return [Path(entry.filename) for entry in archive.infolist() if not entry.is_dir()]

    def read(self, paths: Sequence[Path], skip: bool = False, remedy: str = "") -> Read:
        """Read the images at paths below root.

        skip: leave out those that cannot be read; else ValueError names the first, and says the remedy.
        """
        try:
            pixels = np.empty((len(paths), len(self.mode), self.side, self.side), dtype=np.uint8)
        except (ValueError, MemoryError) as error:
            place = f"data.resolution={self.side}" if self.resize else self.place
            raise ValueError(f"{place}: {len(paths)} images of that size do not fit in memory: lower it") from error

        def fill(place: int) -> str | None:
            try:
                pixels[place] = self.decode(paths[place]).transpose(2, 0, 1)
            except ValueError as error:
                if not skip:
                    raise ValueError(f"{error}{remedy}") from error
                return str(error)
            return None

        # Threads are enough, because Pillow decodes outside the interpreter lock.
        with _any_size(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            refused: list[str | None] = []
            for first in range(0, len(paths), _SUBMITTED):
                refused += threads.map(fill, range(len(paths))[first : first + _SUBMITTED])  # raises a thread's error
        usable = [place for place, why in enumerate(refused) if why is None]
        if len(usable) < len(paths):
            pixels = pixels[usable]
        return Read(pixels, [paths[place] for place in usable], [why for why in refused if why is not None])

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Read one image: (side, side, channels). Raises ValueError if it cannot be read, or is of another size."""
        shown = self.root / path
        file = self._archive / path.as_posix() if self._archive is not None else shown
        if not file.is_file():  # opening a pipe would wait for whoever writes it
            raise ValueError(f"{self.option}: cannot read {shown}: it is not a regular file")
        Image.init()  # all formats are known from here on
        try:
            with (
                file.open("rb") as stream,
                Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN]) as opened,
            ):
                size = "{}x{}".format(*opened.size)  # known before anything is decoded
                if not self.resize and opened.size != (self.side, self.side):
                    raise ValueError(f"it is {size}, not {self.side}x{self.side}")
                millions = math.prod(opened.size) / 1e6
                if millions > self.max_megapixels:
                    raise ValueError(f"{millions:.0f} million pixels are more than data.max_megapixels")
                image = eight_bits(opened).convert(self.mode)
        except UnidentifiedImageError as error:
            raise ValueError(
                f"{self.option}: cannot read {shown}: it is not an image ({', '.join(FORMATS)})"
            ) from error
        except Exception as error:  # Pillow's readers raise nearly anything on a broken file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.option}: cannot read {shown}: {reason}") from error
        width, height = image.size
        if width != height and not self.crop:
            raise ValueError(f"data.crop=false needs square images, but {shown} is {width}x{height}")
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Cut first: resize(box=...) would let the filter look at pixels outside of the square.
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((self.side, self.side), Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(self.side, self.side, len(self.mode))


def class_numbers(root: Path, paths: Sequence[Path], option: str) -> dict[str, int]:
    """The sub-folders of root that paths begin with, numbered in the order of their names.

    option: what asks for classes, for messages. Raises ValueError for an image in none, and for one without images.
    """
    for path in paths:
        if len(path.parts) == 1:
            raise ValueError(f"{option} needs sub-folders, but {root / path} is in none")
    names = sorted({path.parts[0] for path in paths})
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder.name not in names and not folder.name.startswith("."):
            raise ValueError(f"{option} makes each sub-folder a class, but {folder} has no image in it")
    return {name: number for number, name in enumerate(names)}


def eight_bits(opened: ImageFile.ImageFile) -> Image.Image:
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
