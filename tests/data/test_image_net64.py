"""The three ImageNet-64s on small files in their layouts: pixels, classes, split, and each mistake in one line."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noising.data.image_data import Images
from noising.data.image_net64 import Chrabaszcz2017, FromFullImages, ImageNet64, Oord2016
from noising.data.stored_arrays import stored_array
from noising.metrics.classifier import Classifier
from noising.metrics.reference_features import ReferenceFeatures
from noising.runs.folder import Run
from tests.data.helpers import Array, draw, in_planes, write_pngs
from tests.helpers import SMALL, Command

TRAIN, TEST = draw(30), draw(5, seed=1)
LABELS = np.arange(30) % 7 * 166 + 1  # 1 to 997


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Chrabaszcz2017, Oord2016):
        monkeypatch.setattr(kind, "images", (30, 5))


def lay_batches(root: Path, **changed: Any) -> None:
    """Ten batches of three images; the first five in a folder, as the official archive unpacks."""
    part = root / "Imagenet64_train_part1_npz"
    part.mkdir(parents=True)
    for number in range(10):
        rows = slice(3 * number, 3 * number + 3)
        arrays: dict[str, Any] = {"data": in_planes(TRAIN[rows]), "labels": LABELS[rows], "mean": np.zeros(12288)}
        if number == 9:
            arrays |= changed
        np.savez((part if number < 5 else root) / f"train_data_batch_{number + 1}.npz", **arrays)
    np.savez_compressed(root / "val_data.npz", data=in_planes(TEST), labels=np.array([1000, 1, 2, 3, 4]))


def lay_pngs(root: Path) -> None:
    write_pngs(root / "train_64x64", TRAIN)
    write_pngs(root / "valid_64x64", TEST)


def lay_classes(root: Path) -> None:
    for kind, images, classes in (("train", TRAIN, 3), ("val", TEST, 3)):
        for number in range(len(images)):
            folder = root / kind / f"n{number * classes // len(images):08}"
            write_pngs(folder, images[number : number + 1], first=number)


def pixels(images: Images) -> Array:
    """(N, H, W, C), as they were drawn."""
    return images.pixels.permute(0, 2, 3, 1).numpy()


@pytest.mark.usefixtures("small")
def test_batches_are_planes_with_classes_from_one(tmp_path: Path) -> None:
    lay_batches(tmp_path)
    data = ImageNet64(batch_size=4, root=str(tmp_path), val_images=4)
    data.setup()
    assert np.array_equal(pixels(data.train), TRAIN[:26])
    assert np.array_equal(pixels(data.val), TRAIN[26:])
    assert np.array_equal(pixels(data.test), TEST)
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert data.train.labels.tolist() == (LABELS[:26] - 1).tolist()
    assert data.test.labels.tolist() == [999, 0, 1, 2, 3]
    assert (data.channels, data.resolution, data.levels, data.classes) == (3, 64, 256, 1000)
    assert data.identity == {"data": "imagenet64", "data_source": Chrabaszcz2017.title}


@pytest.mark.usefixtures("small")
def test_the_older_set_has_no_classes_and_evenly_spaced_validation(tmp_path: Path) -> None:
    lay_pngs(tmp_path)
    data = ImageNet64(batch_size=4, root=str(tmp_path), val_images=3)
    data.setup()
    held = [0, 10, 20]
    assert np.array_equal(pixels(data.val), TRAIN[held])
    assert np.array_equal(pixels(data.train), np.delete(TRAIN, held, axis=0))
    assert np.array_equal(pixels(data.test), TEST)
    assert (data.classes, data.train.labels, data.source) == (0, None, Oord2016.title)


def test_class_folders_are_numbered_by_name(tmp_path: Path) -> None:
    lay_classes(tmp_path)
    data = ImageNet64(batch_size=4, root=str(tmp_path), val_images=3)
    data.setup()
    assert np.array_equal(pixels(data.val), TRAIN[[0, 10, 20]])  # one of each class
    assert data.val.labels is not None
    assert data.test.labels is not None
    assert data.val.labels.tolist() == [0, 1, 2]
    assert data.test.labels.tolist() == [number * 3 // 5 for number in range(5)]
    assert (data.classes, data.source) == (3, "made from the full images, in class folders")
    card = ReferenceFeatures(data, Classifier(3, 64, 3).eval(), 5).reference("test").card
    assert (card["data"], card["data_source"]) == ("imagenet64", data.source)


@pytest.mark.slow
def test_the_card_of_a_bound_says_which_set_it_is(noising: Command, tmp_path: Path) -> None:
    lay_classes(tmp_path / "images")
    data = ("data=imagenet64", "data.root=images", "+data.val_images=3", "data.batch_size=4")
    few = [option for option in SMALL if not option.startswith(("trainer.max", "trainer.val", "bound.times"))]
    run = ("trainer.max_steps=2", "trainer.val_check_interval=2", "bound.times=4", "hydra.run.dir=run")
    outcome = noising("train", *few, *data, *run)
    assert outcome.code == 0, outcome.err
    assert Run(tmp_path / "run").summary["cards"]["test/bound"]["data_source"] == FromFullImages.title


def nothing(root: Path) -> None:
    """No file at all."""


def lacking(root: Path) -> None:
    lay_batches(root)
    (root / "train_data_batch_7.npz").unlink()


def two(root: Path) -> None:
    lay_batches(root)
    (root / "train_64x64").mkdir()


def other_size(root: Path) -> None:
    lay_pngs(root)
    write_pngs(root / "train_64x64", draw(1, side=32))


def fewer(root: Path) -> None:
    lay_pngs(root)
    (root / "valid_64x64" / "00000.png").unlink()


def other_classes(root: Path) -> None:
    lay_classes(root)
    write_pngs(root / "val" / "n1", TEST[:1])


def floats(root: Path) -> None:
    lay_batches(root, data=np.zeros((3, 12288), np.float32))


def from_zero(root: Path) -> None:
    lay_batches(root, labels=np.array([0, 1, 2]))


def objects(root: Path) -> None:
    lay_batches(root, labels=np.array([1, 2, None], object))


def damaged(root: Path) -> None:
    lay_batches(root)
    (root / "val_data.npz").write_bytes(b"PK and no more")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (nothing, r"there is no ImageNet-64: put there train_data_batch_1\.npz to .*; or the folders train_64x64 and"),
        (lacking, r"train_data_batch_7\.npz is missing: put there train_data_batch_1\.npz to"),
        (two, r"it holds the ImageNet-64 of Chrabaszcz et al\. .* and of van den Oord et al\. \(2016\): give each a"),
        (other_size, r"train_64x64/00000\.png: it is 32x32, not 64x64$"),
        (fewer, r"4 test images are there, of 5: fetch the set again$"),
        (other_classes, r"train and val have not the same sub-folders$"),
        (floats, r"train_data_batch_10\.npz: data is float32 of shape \(3, 12288\), not uint8 of shape \(N, 12288\)$"),
        (from_zero, r"train_data_batch_10\.npz: labels go from 0 to 2, not from 1 to 1000$"),
        (objects, r"train_data_batch_10\.npz: labels holds objects, which only their own code could read$"),
        (damaged, r"val_data\.npz is damaged, or no \.npz file \("),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(lay: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    lay(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        ImageNet64(batch_size=4, root=str(tmp_path), val_images=4).setup()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.usefixtures("small")
def test_too_many_validation_images(tmp_path: Path) -> None:
    lay_batches(tmp_path)
    with pytest.raises(ValueError, match=r"^data\.val_images=30 leaves none of the 30 training images: lower it$"):
        ImageNet64(batch_size=4, root=str(tmp_path), val_images=30).setup()
    with pytest.raises(ValueError, match=r"^val_images must be at least 1, got 0$"):
        ImageNet64(batch_size=4, val_images=0)


def test_a_number_of_images_is_known_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The true set's counts: memory for 15.7 GB is asked for only where the files hold as many."""
    lay_batches(tmp_path)
    monkeypatch.setattr(np, "empty", None)
    with pytest.raises(ValueError, match=r"30 training images are there, of 1,281,167: fetch the set again$"):
        ImageNet64(batch_size=4, root=str(tmp_path)).setup()


def test_an_array_is_read_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    values = np.arange(24, dtype=np.int32).reshape(4, 3, 2)
    np.savez_compressed(file, values=values, columns=np.asfortranarray(values))
    with stored_array(file, "values") as array:
        assert (array.shape, array.dtype, array.form) == ((4, 3, 2), np.int32, "int32 of shape (4, 3, 2)")
        assert np.array_equal(array.read(2), values[:2])
        assert np.array_equal(array.read(2), values[2:])
    with pytest.raises(ValueError, match=r"some\.npz: columns holds its numbers column by column"):
        stored_array(file, "columns").__enter__()
    with pytest.raises(ValueError, match=r"some\.npz holds values, columns, and no array other$"):
        stored_array(file, "other").__enter__()
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive, zipfile.ZipFile(file) as whole:
        archive.writestr("values.npy", whole.read("values.npy")[:-4])
    with (
        pytest.raises(ValueError, match=r"cut\.npz: values ends too early$"),
        stored_array(tmp_path / "cut.npz", "values") as array,
    ):
        array.read()
