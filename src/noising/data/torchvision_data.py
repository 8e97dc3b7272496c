"""MNIST, Fashion-MNIST and CIFAR-10, read and, if missing, downloaded by torchvision's own loaders.

The test split is the official one. Validation is the last ``val_images`` of the official training set, by default only
1,000, so that validating the bound during training stays cheap; the rest is for training.
"""

import contextlib
import io
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_images

from noising.data.image_data import ImageData, Images, Splits
from noising.data.pictures import Pictures

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = ("cifar_train", "cifar_test")


class _TorchvisionData(ImageData):
    """A set of 10 classes, named as in ``torchvision.datasets``."""

    files: str  # the files to put in root where there is no network

    def __init__(self, batch_size: int, root: str = "data", flip: bool = False, val_images: int = 1000) -> None:
        super().__init__(batch_size, flip)
        if val_images < 1:
            raise ValueError(f"val_images must be at least 1, got {val_images}")
        self.root = root
        self.place = f"data.root={root}"
        self.val_images = val_images

    def prepare_data(self) -> None:
        """Download missing files, in one process. Raises ValueError if that fails."""
        if self.downloads:
            self._read(train=True, download=True)

    def load(self) -> Splits:
        train, test = self._read(train=True), self._read(train=False)
        rest = len(train.pixels) - self.val_images
        if rest < 1:
            raise ValueError(
                f"data.val_images={self.val_images} leaves none of the {len(train.pixels)} images: lower it"
            )
        assert train.labels is not None
        sizes = [rest, self.val_images]
        train, val = map(Images, torch.split(train.pixels, sizes), torch.split(train.labels, sizes))
        return Splits(train, val, test, classes=10)

    def _read(self, train: bool, download: bool = False) -> Images:
        import torchvision.datasets  # type: ignore[import-untyped]  # here: importing it takes a second

        name = type(self).__name__
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints every mirror it tries
                found = getattr(torchvision.datasets, name)(self.root, train=train, download=download)
        except Exception as error:  # a missing, cut or changed file shows as nearly any exception
            reason = " ".join(str(error).split()) or type(error).__name__
            tried = "can be neither read nor downloaded" if self.downloads else "cannot be read"
            raise ValueError(f"{self.place}: {name} {tried}: put {self.files} there ({reason})") from error
        return Images(self.pixels(found.data), torch.as_tensor(found.targets, dtype=torch.int64))

    @abstractmethod
    def pixels(self, raw: Any) -> Tensor:
        """Convert torchvision's array to (N, C, H, W) uint8."""


class _GreyTorchvisionData(_TorchvisionData):
    """28x28 grey images, or 32x32 with ``pad``, a border of zeros; bits/dim of the two do not compare."""

    def __init__(
        self, batch_size: int, root: str = "data", flip: bool = False, val_images: int = 1000, pad: bool = False
    ) -> None:
        super().__init__(batch_size, root, flip, val_images)
        self.pad = pad
        self.declared = (32 if pad else 28), 256

    def pixels(self, raw: Any) -> Tensor:
        images: Tensor = raw[:, None]  # (N, 1, 28, 28)
        return pad_images(images, (2, 2, 2, 2)) if self.pad else images


class MNIST(_GreyTorchvisionData):
    """59,000 + 1,000 + 10,000 handwritten digits, 28x28 grey.

    LeCun, Cortes & Burges, "The MNIST database of handwritten digits" (1998). http://yann.lecun.com/exdb/mnist
    """

    name = "mnist"
    files = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"


class FashionMNIST(_GreyTorchvisionData):
    """59,000 + 1,000 + 10,000 pieces of clothing, 28x28 grey.

    Xiao, Rasul & Vollgraf, "Fashion-MNIST" (2017). https://arxiv.org/abs/1708.07747
    """

    name = "fashion_mnist"
    files = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"


class CIFAR10(_TorchvisionData):
    """49,000 + 1,000 + 10,000 photographs, 32x32 colour.

    Read from its own files, or from the folders ``cifar_train`` and ``cifar_test`` of ``CLASS_NUMBER.png`` that
    improved-diffusion makes of them.

    Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    https://www.cs.toronto.edu/~kriz/cifar.html
    """

    name = "cifar10"
    declared = 32, 256
    files = "cifar-10-python.tar.gz, unpacked, as cifar-10-batches-py, or folders cifar_train and cifar_test of .png,"

    def prepare_data(self) -> None:
        if not self._has_folders:
            super().prepare_data()

    @property
    def _has_folders(self) -> bool:
        return all((Path(self.root) / name).is_dir() for name in FOLDERS)

    def _read(self, train: bool, download: bool = False) -> Images:
        if not self._has_folders:
            return super()._read(train, download)
        pictures = Pictures(Path(self.root) / FOLDERS[not train], 32, resize=False)
        numbered = {}
        for path in pictures.find():
            kind, _, number = path.stem.rpartition("_")
            if kind not in CIFAR10_CLASSES or not number.isdecimal():
                raise ValueError(f"{self.place}: {path.name} is not named CLASS_NUMBER.png, as airplane_00029.png")
            numbered[int(number)] = path, CIFAR10_CLASSES.index(kind)
        in_order = [numbered[number] for number in sorted(numbered)]  # of its own files
        paths, labels = zip(*in_order, strict=True)
        return Images(torch.from_numpy(pictures.read(paths).pixels), torch.tensor(labels))

    def pixels(self, raw: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(raw.transpose(0, 3, 1, 2)))
