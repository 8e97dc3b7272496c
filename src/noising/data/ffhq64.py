"""FFHQ at 64x64: 70,000 faces, by folder or by the .zip of EDM's dataset_tool, with a split of our own."""

from pathlib import Path

import torch

from noising.data.image_data import ImageData, Images, Splits
from noising.data.pictures import Pictures

SIDE = 64


class FFHQ64(ImageData):
    """59,000 + 1,000 + 10,000 faces of Flickr, 64x64 colour; no classes.

    FFHQ has no official test images. Here they are the last 10,000 of the 70,000, sorted by name, and validation is the
    1,000 before them. EDM trains on all 70,000 and compares with all of them: its FID is not measured on this split.

    Karras, Laine & Aila, "A Style-Based Generator Architecture for Generative Adversarial Networks" (2019).
    https://arxiv.org/abs/1812.04948

    Args:
        batch_size, flip: as in ImageData.
        root: a folder of 64x64 images, in sub-folders or not, or a .zip of them, as EDM's dataset_tool.py writes
            either; its dataset.json, which has labels for other sets, is passed over.
        val_images: number of validation images.

    Raises:
        ValueError: for arguments out of range; in ``setup`` for a folder that is missing or does not hold 70,000
            images of 64x64.
    """

    name = "ffhq64"
    declared = SIDE, 256
    images = 70_000
    test_images = 10_000

    def __init__(self, batch_size: int, root: str = "data/ffhq64", flip: bool = False, val_images: int = 1000) -> None:
        super().__init__(batch_size, flip)
        most = self.images - self.test_images
        if not 1 <= val_images < most:
            raise ValueError(f"val_images must be from 1 to {most - 1}, got {val_images}")
        self.root, self.val_images = Path(root), val_images
        self.place = f"data.root={root}"

    def load(self) -> Splits:
        what = f"put there {self.images:,} images of {SIDE}x{SIDE}, as EDM's dataset_tool.py makes of FFHQ, or its .zip"
        pictures = Pictures(self.root, SIDE, resize=False)
        try:
            paths = pictures.find()
        except ValueError as error:
            raise ValueError(f"{error}: {what}") from error
        if len(paths) != self.images:
            raise ValueError(f"{self.place} holds {len(paths):,} images: {what}")
        sizes = [self.images - self.test_images - self.val_images, self.val_images, self.test_images]
        pixels = torch.from_numpy(pictures.read(paths).pixels)
        train, val, test = map(Images, torch.split(pixels, sizes))
        return Splits(train, val, test)
