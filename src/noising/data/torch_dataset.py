"""Images of any torch Dataset by index, read into memory, where its facts are read off them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from noising.data.image_data import ImageData, Images, Splits, require_fractions
from noising.errors import in_one_line

log = logging.getLogger(__name__)

IMAGE_NAMES, LABEL_NAMES = ("image", "images", "img", "pixel_values"), ("label", "labels", "fine_label", "class")
"""Names under which an item that is a mapping, as those of Hugging Face, holds its image and its label."""


class Indexed(Protocol):
    """Items by index 0..len − 1: a torch Dataset, a list, or anything else of that form."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TorchDataset(ImageData):
    """A torch Dataset of an image, or of (image, label), by index.

    An image is a PIL image, an array or a tensor: grey levels as they are where its type is uint8, and floats in [0, 1]
    or, where one of them is negative, in [−1, 1], rounded to grey levels. A tensor is (C, H, W) or (H, W), an array
    (H, W, C) or (H, W); all images are square and of one size. A label is a whole number from 0. Every item is read a
    single time: transforms that are drawn at random stay as they were drawn, by torch alike in every run.

    Args:
        batch_size, flip: as in ImageData.
        dataset: the training images, and unless val and test are given those too.
        val, test: data sets of their own; None takes the fraction from `dataset`, by a permutation that no seed
            changes.
        val_fraction, test_fraction: in (0, 1).
        levels: number of grey levels of the images.
        classes: number of classes; 0 leaves the labels out; None reads it off: the length of `dataset.classes`, or the
            largest label + 1.

    Raises:
        ValueError: for arguments out of range; in ``setup`` for what is no such data set, naming the item.
    """

    name = "torch_dataset"

    def __init__(
        self,
        dataset: Indexed,
        batch_size: int = 128,
        flip: bool = False,
        val: Indexed | None = None,
        test: Indexed | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        levels: int = 256,
        classes: int | None = None,
    ) -> None:
        super().__init__(batch_size, flip)
        require_fractions(val_fraction, test_fraction)
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must be from 2 to 256, got {levels}")
        if classes is not None and classes < 0:
            raise ValueError(f"classes must not be negative, got {classes}")
        self.name = type(dataset).__name__
        self.place = "data.dataset"
        self._sets: dict[str, Indexed | None] = {"train": dataset, "val": val, "test": test}
        self._fractions = {"val": val_fraction, "test": test_fraction}
        self._grey_levels, self._classes = levels, classes

    def load(self) -> Splits:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # what torch draws in a transform is the same in every run
            given = {name: items for name, items in self._sets.items() if items is not None or name == "train"}
            read = {name: self._read(name, items) for name, items in given.items()}
        pixels, labels = read["train"]
        missing = [name for name in ("val", "test") if name not in read]
        rest = np.random.RandomState(0).permutation(len(pixels))
        for name in missing:
            count = round(self._fractions[name] * len(pixels))
            chosen, rest = np.split(rest, [count])
            read[name] = _chosen(pixels, labels, chosen)
        read["train"] = _chosen(pixels, labels, np.sort(rest)) if missing else (pixels, labels)
        for name, (found, _) in read.items():
            if not len(found):
                raise ValueError(f"{self.place}: none of the {len(pixels)} images is left for {name}: give more images")
        images = self._images(read)
        classes = self._number_of_classes(images)
        return Splits(images["train"], images["val"], images["test"], levels=self._grey_levels, classes=classes)

    def _read(self, split: str, items: Indexed | None) -> tuple[Tensor, Tensor | None]:
        """All images of a data set, (N, C, H, W) uint8 or float32, and their labels (N,), if it has any."""
        place = self.place if split == "train" else f"data.{split}"
        indexed = hasattr(items, "__len__") and hasattr(items, "__getitem__")
        if items is None or isinstance(items, IterableDataset) or not indexed:
            raise ValueError(f"{place}: {type(items).__name__} has no items by index: it needs __len__ and __getitem__")
        with _reading(place):
            count = len(items)
        if not count:
            raise ValueError(f"{place}: it is empty")
        pixels, labels = [], []
        for index in range(count):
            with _reading(f"{place}: item {index}"):
                image, label = self._item(items, index)
                pixels.append(image)
                labels.append(label)
                if image.shape != pixels[0].shape:
                    raise ValueError(f"has shape {tuple(image.shape)}, but the first has {tuple(pixels[0].shape)}")
                if (label is None) != (labels[0] is None):
                    raise ValueError(
                        "has a label, but the first has none"
                        if labels[0] is None
                        else "has no label, but the first has one"
                    )
        with _reading(f"{place}: item 0, a second time"):
            again, _ = self._item(items, 0)
        if not _same(pixels[0], again):
            log.warning("%s: its images are random, but each is read only one time; for flips use data.flip", place)
        if labels[0] is None:
            return torch.stack(pixels), None
        return torch.stack(pixels), torch.tensor(labels, dtype=torch.int64)

    def _item(self, items: Indexed, index: int) -> tuple[Tensor, int | None]:
        """The pixels and the label of an item; no label with `classes=0`."""
        image, label = _parts(items[index])
        return _pixels(image), None if label is None or self._classes == 0 else _label(label)

    def _images(self, read: Mapping[str, tuple[Tensor, Tensor | None]]) -> dict[str, Images]:
        """The splits as grey levels."""
        floats = [pixels for pixels, _ in read.values() if pixels.is_floating_point()]
        if floats and len(floats) < len(read):
            raise ValueError(f"{self.place}: some splits hold floats and some uint8: use one type for all")
        if len({tuple(pixels.shape[1:]) for pixels, _ in read.values()}) > 1:
            shapes = ", ".join(f"{name} {tuple(pixels.shape[1:])}" for name, (pixels, _) in read.items())
            raise ValueError(f"{self.place}: the splits have different shapes: {shapes}")
        leasts = {name: float(pixels.min()) for name, (pixels, _) in read.items() if floats}
        least, most = min(leasts.values(), default=0.0), max((float(pixels.max()) for pixels in floats), default=1.0)
        lowest = -1.0 if least < -1e-3 else 0.0  # a filter that resizes overshoots by rounding
        if not lowest - 1e-3 <= least <= most <= 1 + 1e-3:
            raise ValueError(
                f"{self.place}: its floats go from {least:.4g} to {most:.4g}: give [0, 1], [-1, 1] or uint8"
            )
        if lowest and (bright := [name for name, low in leasts.items() if low > -1e-3]):
            names = " and ".join(bright)
            log.warning("%s: all images are read as [-1, 1], although no pixel of %s is negative", self.place, names)
        top = self._grey_levels - 1

        def grey(pixels: Tensor) -> Tensor:
            if not pixels.is_floating_point():
                return pixels
            return ((pixels - lowest) * (top / (1 - lowest))).round_().clamp_(0, top).to(torch.uint8)

        return {name: Images(grey(pixels), labels) for name, (pixels, labels) in read.items()}

    def _number_of_classes(self, images: Mapping[str, Images]) -> int:
        labels = [split.labels for split in images.values()]
        known = [one for one in labels if one is not None]
        if not known:
            if self._classes:
                raise ValueError(f"{self.place}: its items have no label, but data.classes={self._classes}")
            return 0
        if len(known) < len(labels):
            raise ValueError(f"{self.place}: some splits have labels and some have none")
        if self._classes is not None:
            return self._classes
        names = getattr(self._sets["train"], "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str):
            return len(names)
        return 1 + max(int(one.max()) for one in known)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turn whatever a data set raises, since it is the user's, into a ValueError that names the place."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{place}: {kind}{in_one_line(str(error))}") from error


def _parts(item: Any) -> tuple[Any, Any]:
    """The image of an item and its label, None without one."""
    if isinstance(item, Mapping):
        found = [[item[name] for name in names if name in item] for names in (IMAGE_NAMES, LABEL_NAMES)]
        if not found[0]:
            raise ValueError(f"has no {' or '.join(IMAGE_NAMES)}, only {', '.join(map(str, item))}")
        return found[0][0], found[1][0] if found[1] else None
    if isinstance(item, tuple | list):
        return (item[0], item[1] if len(item) > 1 else None)
    return item, None


def _pixels(image: Any) -> Tensor:
    """An image as (C, H, W) of uint8 or float32."""
    form = "(C, H, W)"
    if isinstance(image, Image.Image):
        image = _eight_bits(image)
    if isinstance(image, np.ndarray):
        form = "(H, W, C)"
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
    elif isinstance(image, Tensor):
        tensor = image.detach().cpu()
    else:
        raise ValueError(f"is {type(image).__name__}, not a PIL image, an array or a tensor")
    tensor = tensor[None] if tensor.ndim == 2 else tensor
    if tensor.ndim != 3 or tensor.shape[1] != tensor.shape[2] or not tensor.numel():
        raise ValueError(f"has shape {tuple(image.shape)}: a square {form} or (H, W) is expected")
    if tensor.is_floating_point():
        if not tensor.isfinite().all():
            raise ValueError("holds numbers that are not finite")
        return tensor.to(torch.float32, memory_format=torch.contiguous_format)
    if tensor.dtype == torch.bool:
        return tensor.to(torch.float32)
    if tensor.dtype != torch.uint8:
        raise ValueError(f"has type {str(tensor.dtype).removeprefix('torch.')}: give uint8, or floats in [0, 1]")
    return tensor.contiguous()


def _eight_bits(image: Image.Image) -> np.ndarray[Any, Any]:
    """A PIL image as grey levels (H, W) or colours (H, W, 3) of 8 bits, what is clear laid on white."""
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip them
        raise ValueError(f"has Pillow's mode {image.mode}: give 8 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.array(image)


def _label(label: Any) -> int:
    value = np.asarray(label)
    if value.size != 1 or value.dtype.kind not in "iu" or not 0 <= int(value.reshape(-1)[0]) < 2**31:
        hint = "a whole number from 0 is expected; data.classes=0 leaves the labels out"
        raise ValueError(f"has the label {str(label)[:40]}: {hint}")
    return int(value.reshape(-1)[0])


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _chosen(pixels: Tensor, labels: Tensor | None, places: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor | None]:
    index = torch.from_numpy(places)
    return pixels[index], None if labels is None else labels[index]
