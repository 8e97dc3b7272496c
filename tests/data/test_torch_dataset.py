"""Items of every form as grey levels, known in advance; each mistake of a data set in one line that names the item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from noising.data.torch_dataset import Indexed, TorchDataset


class Made(Dataset[Any]):
    """Items by a function of their index."""

    def __init__(self, make: Callable[[int], Any], count: int = 20, **attributes: Any) -> None:
        self.make, self.count = make, count
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def read(dataset: Any, **options: Any) -> TorchDataset:
    data = TorchDataset(dataset, 2, **options)
    data.setup()
    return data


def grey(item: Any, **options: Any) -> Tensor:
    """The grey levels (C, H, W) of an item."""
    return read(Made(lambda index: item), **options).train.pixels[0]


def constant(*colour: int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (2, 2), colour if len(colour) > 1 else colour[0])


HALF = np.array([[0.0, 0.5], [1.0, 0.25]])


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (constant(77, mode="L"), 1, [77, 77, 77, 77]),
        (constant(9, 8, 7), 3, [9, 9, 9, 9]),
        (constant(1, mode="1"), 1, [255] * 4),
        (constant(9, 8, 7, 0, mode="RGBA"), 3, [255] * 4),  # clear is laid on white
        (constant(9, 8, 7, 255, mode="RGBA"), 3, [9] * 4),
        (constant(0, 0, 0, 255, mode="CMYK"), 3, [0] * 4),
        (np.array([[[1, 9], [2, 9]], [[3, 9], [4, 9]]], np.uint8), 2, [1, 2, 3, 4]),  # (H, W, C)
        (np.array([[1, 2], [3, 4]], np.uint8), 1, [1, 2, 3, 4]),
        (torch.tensor([[[1, 2], [3, 4]], [[9, 9], [9, 9]]], dtype=torch.uint8), 2, [1, 2, 3, 4]),  # (C, H, W)
        (HALF, 1, [0, 128, 255, 64]),
        (torch.from_numpy(HALF).half(), 1, [0, 128, 255, 64]),
        (torch.from_numpy(HALF).requires_grad_(), 1, [0, 128, 255, 64]),
        (2 * HALF - 1, 1, [0, 128, 255, 64]),
        (HALF - 0.0009, 1, [0, 127, 255, 64]),  # rounding below 0 makes no [-1, 1]
        (HALF > 0.3, 1, [0, 255, 255, 0]),
    ],
)
def test_an_image_of_every_form(image: Any, channels: int, expected: list[int]) -> None:
    pixels = grey(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (channels, 2, 2)
    assert pixels[0].flatten().tolist() == expected


def test_grey_levels_are_as_many_as_are_said() -> None:
    assert grey(HALF, levels=5).flatten().tolist() == [0, 2, 4, 1]
    assert read(Made(lambda index: HALF), levels=5).levels == 5
    assert grey(np.array([[0, 4], [1, 2]], np.uint8), levels=5).flatten().tolist() == [0, 4, 1, 2]
    with pytest.raises(ValueError, match=r"^data\.dataset: a \w+ image has grey level 5, of 5 levels$"):
        grey(np.array([[0, 5], [1, 2]], np.uint8), levels=5)


def one(index: int) -> Tensor:
    """An image whose grey is its index."""
    return torch.full((1, 2, 2), index, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("item", "label"),
    [
        (lambda index: (one(index), index % 3), True),
        (lambda index: [one(index), torch.tensor(index % 3), "more"], True),
        (lambda index: (one(index), np.uint8([index % 3])), True),
        (lambda index: {"label": index % 3, "img": one(index), "path": "x"}, True),
        (lambda index: {"pixel_values": one(index), "fine_label": index % 3}, True),
        (lambda index: {"image": one(index)}, False),
        (lambda index: (one(index),), False),
        (lambda index: (one(index), None), False),
    ],
)
def test_a_label_stays_with_its_image(item: Any, label: bool) -> None:
    data = read(Made(item, 30))
    assert data.classes == (3 if label else 0)
    for images in (data.train, data.val, data.test):
        if not label:
            assert images.labels is None
            continue
        assert images.labels is not None
        assert (images.pixels[:, 0, 0, 0] % 3).tolist() == images.labels.tolist()


def test_classes_are_those_of_the_option_the_data_set_or_the_labels() -> None:
    labelled = Made(lambda index: (one(index), index % 3), classes=["a", "b", "c", "d"])
    assert read(labelled).classes == 4
    assert read(labelled, classes=7).classes == 7
    assert read(Subset(labelled, range(15))).classes == 3
    words = Made(lambda index: (one(index), "cat"))
    assert (read(words, classes=0).classes, read(words, classes=0).train.labels) == (0, None)
    with pytest.raises(ValueError, match=r"the \w+ labels go from \d to 2, but there are 2 classes"):
        read(labelled, classes=2)
    with pytest.raises(ValueError, match=r"^data\.dataset: its items have no label, but data\.classes=5$"):
        read(Made(one), classes=5)


def test_splits_are_disjoint_and_the_same_each_time() -> None:
    data, again = read(Made(one, 50)), read(Made(one, 50))
    found = [split.pixels[:, 0, 0, 0].tolist() for split in (data.train, data.val, data.test)]
    assert [len(split) for split in found] == [40, 5, 5]
    assert sorted([*found[0], *found[1], *found[2]]) == [*range(50)]
    assert found[0] == sorted(found[0])
    assert found[1] != sorted(found[1])
    assert data.digest == again.digest
    other = read(Made(one, 50), val_fraction=0.2, test_fraction=0.4)
    assert [len(other.train.pixels), len(other.val.pixels), len(other.test.pixels)] == [20, 10, 20]


def test_splits_of_their_own_are_taken_whole() -> None:
    data = read(Made(one, 20), val=Made(lambda index: one(100 + index), 3), test=Made(lambda index: one(200), 1))
    assert data.train.pixels[:, 0, 0, 0].tolist() == [*range(20)]
    assert data.val.pixels[:, 0, 0, 0].tolist() == [100, 101, 102]
    assert data.test.pixels[:, 0, 0, 0].tolist() == [200]
    data = read(Made(one, 20), test=Made(lambda index: one(200), 1))
    assert (len(data.train.pixels), len(data.val.pixels), len(data.test.pixels)) == (18, 2, 1)


@pytest.mark.parametrize(
    "items",
    [
        [one(index) for index in range(20)],
        TensorDataset(torch.stack([one(index) for index in range(20)])),
        ConcatDataset([Subset(Made(one), range(5)), Subset(Made(one), range(5, 20))]),
        torch.stack([one(index) for index in range(20)]),
    ],
    ids=["list", "TensorDataset", "ConcatDataset", "tensor"],
)
def test_whatever_has_items_by_index(items: Indexed) -> None:
    data = read(items)
    assert data.digest == read(Made(one)).digest
    assert data.name == type(items).__name__


def test_what_torch_draws_is_the_same_in_every_run_and_leaves_its_generator(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    first = read(Made(lambda index: torch.rand(1, 2, 2)))
    drawn = torch.rand(())
    assert "data.dataset: its images are random, but each is read only one time" in caplog.text
    torch.manual_seed(1)
    assert torch.rand(()) == drawn
    assert read(Made(lambda index: torch.rand(1, 2, 2))).digest == first.digest
    caplog.clear()
    read(Made(one))
    assert caplog.text == ""


def test_a_scale_that_only_some_splits_have_is_told(caplog: pytest.LogCaptureFixture) -> None:
    bright, signed = Made(lambda index: HALF), Made(lambda index: 2 * HALF - 1)
    read(signed, val=signed, test=bright)
    assert caplog.messages == ["data.dataset: all images are read as [-1, 1], although no pixel of test is negative"]


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([])


class Lengthless(Dataset[Tensor]):
    def __len__(self) -> int:
        raise RuntimeError("no idea")

    def __getitem__(self, index: int) -> Tensor:
        return one(index)


def second(index: int, count: list[int]) -> Tensor:
    count.append(index)
    if count.count(0) > 1:
        raise OSError("closed")
    return one(index)


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        (Made(one, 0), "it is empty"),
        (Made(one, 1), "none of the 1 images is left for val: give more"),
        (None, "NoneType has no items by index: it needs __len__ and __getitem__"),
        (Endless(), "Endless has no items by index: it needs __len__ and __getitem__"),
        (Lengthless(), "RuntimeError: no idea"),
        (Made(lambda index, count=[]: second(index, count)), "item 0, a second time: OSError: closed"),
        (Made(lambda index: [one(0)] * 20 if index < 7 else {}["x"]), "item 0: has the label tensor"),
        (Made(lambda index: one(0) if index < 7 else {}["x"]), "item 7: KeyError: 'x'"),
        (Made(lambda index: torch.rand(1, 2, 2 + index)), "item 1: has shape (1, 2, 3): a square (C, H, W)"),
        (Made(lambda index: torch.rand(1, 2 + index, 2 + index)), "item 1: has shape (1, 3, 3), but the first has"),
        (Made(lambda index: np.zeros((3, 8, 8))), "item 0: has shape (3, 8, 8): a square (H, W, C) or (H, W) is"),
        (Made(lambda index: torch.zeros(1, 0, 0)), "item 0: has shape (1, 0, 0): a square"),
        (Made(lambda index: torch.zeros(1, 1, 2, 2)), "item 0: has shape (1, 1, 2, 2): a square"),
        (Made(lambda index: torch.zeros(2, 2).long()), "item 0: has type int64: give uint8, or floats in [0, 1]"),
        (Made(lambda index: HALF * np.nan), "item 0: holds numbers that are not finite"),
        (Made(lambda index: HALF * 255), "its floats go from 0 to 255: give [0, 1], [-1, 1] or uint8"),
        (Made(lambda index: HALF * 4 - 2), "its floats go from -2 to 2: give [0, 1], [-1, 1] or uint8"),
        (Made(lambda index: constant(9, mode="I;16")), "item 0: has Pillow's mode I;16: give 8 bits per channel"),
        (Made(lambda index: constant(9, mode="F")), "item 0: has Pillow's mode F: give 8 bits per channel"),
        (Made(lambda index: "cat.png"), "item 0: is str, not a PIL image, an array or a tensor"),
        (Made(lambda index: {"x": one(0), "label": 1}), "item 0: has no image or images or img or pixel_va"),
        (Made(lambda index: (one(0), "cat")), "item 0: has the label cat: a whole number from 0 is expected; data."),
        (Made(lambda index: (one(0), -1)), "item 0: has the label -1: a whole number from 0"),
        (Made(lambda index: (one(0), 0.0)), "item 0: has the label 0.0: a whole number from 0"),
        (Made(lambda index: (one(0), 2**31)), "item 0: has the label 2147483648: a whole number from 0"),
        (Made(lambda index: (one(0), torch.eye(3)[0])), "item 0: has the label tensor([1., 0., 0.]): a whole"),
        (Made(lambda index: (one(0), None if index == 3 else 1)), "item 3: has no label, but the first has one"),
        (Made(lambda index: (one(0), 1 if index == 3 else None)), "item 3: has a label, but the first has none"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_that_names_the_item(dataset: Any, line: str) -> None:
    with pytest.raises(ValueError) as raised:
        read(dataset)
    assert str(raised.value).startswith(f"data.dataset: {line}"), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("val", "line"),
    [
        (
            Made(lambda index: one(0).float()),
            "data.dataset: some splits hold floats and some uint8: use one type for all",
        ),
        (
            Made(lambda index: one(0)[:, :1, :1]),
            "data.dataset: the splits have different shapes: train (1, 2, 2), val (1, 1, 1), test (1, 2, 2)",
        ),
        (Made(lambda index: (one(0), 1)), "data.dataset: some splits have labels and some have none"),
        (Made(lambda index: None), "data.val: item 0: is NoneType, not a PIL image, an array or a tensor"),
    ],
)
def test_splits_that_do_not_fit_together(val: Any, line: str) -> None:
    with pytest.raises(ValueError) as raised:
        read(Made(one), val=val)
    assert str(raised.value) == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1, got 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1, got 1.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"val_fraction \+ test_fraction must be below 1, got 1.0"),
        ({"levels": 1}, "levels must be from 2 to 256, got 1"),
        ({"levels": 257}, "levels must be from 2 to 256, got 257"),
        ({"classes": -1}, "classes must not be negative, got -1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        TorchDataset(Made(one), **options)
