"""The torchvision sets on tiny files in torchvision's own formats; nothing is downloaded."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from noising.data.torchvision_data import CIFAR10, CIFAR10_CLASSES, MNIST, FashionMNIST


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def lay_idx(root: Path, folder: str) -> dict[str, np.ndarray[Any, Any]]:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    draw = np.random.default_rng(0)
    images = {part: draw.integers(0, 256, (n, 28, 28)) for part, n in (("train", 12), ("t10k", 5))}
    for part, values in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", values)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(values)) % 10)
    return images


@pytest.mark.parametrize(("kind", "folder"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")])
def test_grey_sets_hold_back_the_end_of_the_training_images(kind: Any, folder: str, tmp_path: Path) -> None:
    images = lay_idx(tmp_path, folder)
    data = kind(batch_size=4, root=str(tmp_path), val_images=3)
    data.prepare_data()
    data.setup()
    assert torch.equal(data.train.pixels[:, 0], torch.from_numpy(images["train"][:9]).to(torch.uint8))
    assert torch.equal(data.val.pixels[:, 0], torch.from_numpy(images["train"][9:]).to(torch.uint8))
    assert torch.equal(data.test.pixels[:, 0], torch.from_numpy(images["t10k"]).to(torch.uint8))
    assert data.val.labels.tolist() == [9, 0, 1]
    assert (data.channels, data.resolution, data.levels, data.classes) == (1, 28, 256, 10)
    padded = kind(batch_size=4, root=str(tmp_path), val_images=3, pad=True)
    padded.setup()
    assert padded.resolution == 32
    assert torch.equal(padded.test.pixels[:, :, 2:-2, 2:-2], data.test.pixels)
    assert padded.test.pixels.sum() == data.test.pixels.sum()  # the border is zeros


def test_cifar10_is_read_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets  # type: ignore[import-untyped]

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    images = {
        "data_batch_1": draw.integers(0, 256, (10, 3072)),
        "test_batch": draw.integers(0, 256, (4, 3072)),
    }
    for name, values in images.items():
        labels = list(range(len(values)))
        (folder / name).write_bytes(pickle.dumps({"data": values.astype(np.uint8), "labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": None})
    data = CIFAR10(batch_size=4, root=str(tmp_path), flip=True, val_images=2)
    data.prepare_data()
    data.setup()
    expected = torch.from_numpy(images["data_batch_1"]).to(torch.uint8).view(10, 3, 32, 32)
    assert torch.equal(data.train.pixels, expected[:8])
    assert torch.equal(data.val.pixels, expected[8:])
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [0, 1, 2, 3]


def test_cifar10_is_read_from_folders_of_png(tmp_path: Path) -> None:
    """As improved-diffusion makes them: named by class and place, and here in the order of the places."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    labels = [9, 0, 3, 3, 7, 1, 0, 9]
    for folder, places in (("cifar_train", range(6)), ("cifar_test", range(6, 8))):
        (tmp_path / folder).mkdir()
        for number, place in enumerate(places):
            name = f"{CIFAR10_CLASSES[labels[place]]}_{number:05d}.png"
            Image.fromarray(pixels[place]).save(tmp_path / folder / name)
    data = CIFAR10(batch_size=4, root=str(tmp_path), val_images=2)
    data.prepare_data()
    data.setup()
    found = torch.cat([data.train.pixels, data.val.pixels, data.test.pixels])
    assert torch.equal(found, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert [*data.train.labels.tolist(), *data.val.labels.tolist(), *data.test.labels.tolist()] == labels  # type: ignore[union-attr]
    Image.fromarray(pixels[0]).save(tmp_path / "cifar_test" / "kitten_1.png")
    with pytest.raises(ValueError, match="kitten_1"):
        CIFAR10(batch_size=4, root=str(tmp_path), val_images=2).setup()


def test_cifar10_of_another_size_is_refused(tmp_path: Path) -> None:
    for folder in ("cifar_train", "cifar_test"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / folder / "cat_0.png")
    with pytest.raises(ValueError, match="16x16"):
        CIFAR10(batch_size=4, root=str(tmp_path), val_images=2).setup()


def test_a_failed_download_is_one_line_that_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision.datasets

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    data = MNIST(batch_size=4, root=str(tmp_path))
    for attempt in (data.prepare_data, data.setup):
        with pytest.raises(ValueError, match=r": put MNIST/raw/.*images-idx3.* there \(") as caught:
            attempt()
        assert str(caught.value).startswith(f"data.root={tmp_path}: ")
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_too_many_validation_images(tmp_path: Path) -> None:
    lay_idx(tmp_path, "MNIST")
    with pytest.raises(ValueError, match=r"^data\.val_images=1000 leaves none of the 12 images: lower it$"):
        MNIST(batch_size=4, root=str(tmp_path)).setup()
    with pytest.raises(ValueError, match=r"^val_images must be at least 1, got 0$"):
        MNIST(batch_size=4, val_images=0)
