"""The data set of images: three uint8 tensors in memory, facts about them, and loaders over them.

The loaders have no worker processes: to index a tensor in memory is far cheaper than to send a batch between processes.
Flips and scaling to [-1, 1] run on the device, after the bytes, a quarter of float32, have been copied there.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from noising.data.order import BatchSlice, StepOrder, evaluation_batches
from noising.errors import ConfigError
from noising.randomness import generator

SPLITS = ("test", "train", "val")  # in evaluation order


class Images(NamedTuple):
    """Images of one split. The tuple has two elements: count images by ``len(images.pixels)``."""

    pixels: Tensor  # (N, C, H, W) uint8, 0..levels-1
    labels: Tensor | None = None  # (N,) int64


class Splits(NamedTuple):
    """The content of a data set: three splits, the number of grey levels and of classes (0: unlabelled)."""

    train: Images
    val: Images
    test: Images
    levels: int = 256
    classes: int = 0


def _batch(images: Images, indices: Tensor) -> dict[str, Tensor]:
    batch = {"image": images.pixels[indices], "index": indices}
    return batch if images.labels is None else {**batch, "label": images.labels[indices]}


def require_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise ValueError unless both are in (0, 1), and leave images to train on."""
    for argument, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise ValueError(f"{argument} must lie between 0 and 1, got {fraction}")
    if val_fraction + test_fraction >= 1:
        raise ValueError(f"val_fraction + test_fraction must be below 1, got {val_fraction + test_fraction}")


class ImageData(LightningDataModule, ABC):
    """Train, validation and test images, and the facts about them that models and decoders need.

    Known after ``setup``: train, val, test; channels, resolution (square side), levels (grey levels), classes
    (0: none).

    Args:
        batch_size: images per optimizer step, over all devices and accumulation steps.
        flip: mirror every training image left to right with probability ½.

    A batch handed to the module: image (B, C, H, W) float32 in [-1, 1], index (B,) int64 in its split, and
    label (B,) int64 if the set has classes.
    """

    name: str
    train: Images
    val: Images
    test: Images
    channels: int
    resolution: int
    levels: int
    classes: int
    source: str | None = None  # which of several data sets of this name it is; known after setup
    resize: str | None = None  # the filter that resized the images; None if none did
    downloads: bool = True  # whether files that are missing may be fetched; not where a run's file says to where
    skipped: int = 0  # the number of unreadable images that were left out, where an option allows it
    train_batches: int | None = None  # the number of batches that training sees, again and again; None for all images
    tested: str = "test"  # the split that Trainer.test evaluates
    declared: tuple[int, int] | None = None  # resolution and levels, if they are known before the images are read

    def __init__(self, batch_size: int, flip: bool = False) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.flip = flip
        self.place = f"data={self.name}"  # the option that says where the images are, for messages

    @abstractmethod
    def load(self) -> Splits:
        """Read the whole set into memory; the split must not depend on the run's seed."""

    def setup(self, stage: str | None = None) -> None:
        """Load the images, if not loaded. Raises ValueError where a batch size cannot be trained with, before a fit."""
        if not hasattr(self, "train"):
            splits = self.load()
            self.train, self.val, self.test, self.levels, self.classes = splits
            self.channels, self.resolution = self.train.pixels.shape[1:3]
            self._check_ranges()
            if self.declared not in (None, (self.resolution, self.levels)):
                found = f"resolution {self.resolution} and {self.levels} levels"
                raise ValueError(f"{self.place}: declares (resolution, levels) = {self.declared}, but has {found}")
        if self.trainer is not None and stage in (None, "fit"):
            self.check_batch_size()
            self._order()  # the divisibility of the batch is checked by the order itself

    def _check_ranges(self) -> None:
        for name in SPLITS:
            pixels, labels = getattr(self, name)
            if labels is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                raise ValueError(
                    f"{self.place}: the {name} labels go from {int(labels.min())} to {int(labels.max())}, "
                    f"but there are {self.classes} classes: they must be 0 to {self.classes - 1}"
                )
            if int(pixels.max()) >= self.levels:
                top = int(pixels.max())
                raise ValueError(f"{self.place}: a {name} image has grey level {top}, of {self.levels} levels")

    @property
    def identity(self) -> dict[str, str]:
        """The set's name, and which of several of that name it is, for the cards of numbers."""
        return {"data": self.name, **({"data_source": self.source} if self.source else {})}

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of all images and labels, by which a resumed run knows that they are the same."""
        sha = hashlib.sha256()
        for name in SPLITS:
            for tensor in getattr(self, name):
                if tensor is not None:
                    sha.update(str(tuple(tensor.shape)).encode())
                    sha.update(memoryview(tensor.contiguous().numpy()).cast("B"))
        return sha.hexdigest()

    def check_batch_size(self) -> None:
        """Raise ConfigError if one step needs more training images than there are: for training alone."""
        images = len(self.train.pixels)
        if self.batch_size > images:
            raise ConfigError(f"data.batch_size={self.batch_size} is more than the {images} training images: lower it")

    # Pixels 0..levels-1 <-> [-1, 1]

    def scale(self, pixels: Tensor) -> Tensor:
        """2 p / (levels - 1) - 1: from uint8 levels to float32 in [-1, 1], both ends exact."""
        return 2 * pixels.to(torch.float32) / (self.levels - 1) - 1

    def batch(
        self, split: str, index: Tensor | slice, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) of a split in [-1, 1] and their classes (B,), if the set has any, on the device."""
        pixels, labels = getattr(self, split)
        return self.scale(pixels[index].to(device)), None if labels is None else labels[index].to(device)

    def unscale(self, x: Tensor) -> Tensor:
        """The nearest grey level of x, clamped to [-1, 1]: uint8."""
        return ((x.clamp(-1, 1) + 1) * ((self.levels - 1) / 2)).round().to(torch.uint8)

    def to_8bit(self, pixels: Tensor) -> Tensor:
        """Spread levels 0..levels-1 over 0..255 for viewing: uint8."""
        return (pixels.to(torch.float32) * 255 / (self.levels - 1)).round().to(torch.uint8)

    def from_8bit(self, pixels: Tensor) -> Tensor:
        """The nearest grey level of each value 0..255, which undoes `to_8bit`: uint8."""
        return (pixels.to(torch.float32) * (self.levels - 1) / 255).round().to(torch.uint8)

    # Loaders

    def _order(self) -> StepOrder:
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("the training order needs a Trainer; without one, read .train.pixels")
        return StepOrder(
            len(self.train.pixels),
            self.batch_size,
            cast(int, trainer.lightning_module.seed),
            start_step=lambda: trainer.global_step,
            accumulate=trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world=trainer.world_size,
            batches=self.train_batches,
        )

    def _loader(self, places: Any, read: Callable[[Any], dict[str, Tensor]]) -> DataLoader[Any]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(places, batch_size=None, collate_fn=read, pin_memory=on_cuda)

    def train_dataloader(self) -> DataLoader[Any]:
        """Infinite batches in the order keyed by the ``seed`` of the trainer's module.

        With ``flip`` they hold the horizontal-flip mask: one draw for the global batch, the same on any devices.
        """
        order = self._order()

        def read(part: BatchSlice) -> dict[str, Tensor]:
            batch = _batch(self.train, part.indices)
            if self.flip:
                drawn = generator(order.seed, "flip", part.step).random(self.batch_size) < 0.5
                batch["flip"] = torch.from_numpy(drawn)[part.first : part.first + len(part.indices)]
            return batch

        return self._loader(order, read)

    def _evaluation_loader(self, images: Images) -> DataLoader[Any]:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        batches = evaluation_batches(len(images.pixels), self.batch_size, rank, world)
        return self._loader(batches, partial(_batch, images))

    def val_dataloader(self) -> DataLoader[Any]:
        """Each validation image once, in the set's order."""
        return self._evaluation_loader(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        """Each image of the split `tested` once, in the set's order."""
        return self._evaluation_loader(getattr(self, self.tested))

    def images_in(self, batches: int, images: int, world: int) -> int:
        """The number of images in so many batches of each rank; they are the first of the split."""
        return min(images, batches * max(1, self.batch_size // world) * world)

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Copy the tensors to the device, without Lightning's search for them in any structure."""
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Mirror the images of the flip mask, and scale all, on the device."""
        batch = dict(batch)
        pixels, flip = batch["image"], batch.pop("flip", None)
        if flip is not None:
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        return {**batch, "image": self.scale(pixels)}
