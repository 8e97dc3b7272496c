"""What every data set owes: exact scaling, keyed flips, loaders that resume; the shipped sets' splits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from noising.data import photo_patches
from noising.data.digits import Digits
from noising.data.image_data import ImageData, Images, Splits
from noising.data.photo_patches import PhotoPatches


class Numbered(ImageData):
    """Forty 2x2 images: image i has i in its left column and 100 in its right one."""

    name = "numbered"
    loads = 0

    def load(self) -> Splits:
        self.loads += 1
        pixels = torch.full((40, 1, 2, 2), 100, dtype=torch.uint8)
        pixels[..., 0] = torch.arange(40, dtype=torch.uint8)[:, None, None]
        labels = torch.arange(40) % 3
        return Splits(Images(pixels, labels), Images(pixels[:7], labels[:7]), Images(pixels[:5], labels[:5]), 256, 3)


def with_trainer(
    data: ImageData, seed: int = 0, step: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1
) -> Any:
    """The data with the few facts of a Trainer that loaders read."""
    data.trainer = cast(
        Any,
        SimpleNamespace(
            global_step=step,
            global_rank=rank,
            world_size=world,
            accumulate_grad_batches=accumulate,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
            lightning_module=SimpleNamespace(seed=seed),
        ),
    )
    data.setup("fit")
    return data


def training_batches(data: Any, count: int) -> list[dict[str, Tensor]]:
    stream = iter(data.train_dataloader())
    return [data.on_after_batch_transfer(next(stream), 0) for _ in range(count)]


def test_images_by_index_with_their_classes() -> None:
    data = Numbered(batch_size=8)
    data.setup()
    x, classes = data.batch("train", torch.tensor([3, 38]))
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([[6, 200], [76, 200]]) / 255 - 1)
    assert classes is not None
    assert classes.tolist() == [0, 2]
    assert torch.equal(data.batch("train", slice(2, 4))[0][1:], x[:1])
    data.val = Images(data.val.pixels)
    assert data.batch("val", slice(3))[1] is None


def is_mirrored(data: ImageData, batch: dict[str, Tensor]) -> Tensor:
    return data.unscale(batch["image"])[:, 0, 0, 0] == 100


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_scaling_is_exact_on_every_level(levels: int) -> None:
    data = Numbered(batch_size=8)
    data.levels = levels
    pixels = torch.arange(levels, dtype=torch.uint8)
    x = data.scale(pixels)
    assert x.dtype == torch.float32
    assert (x[0].item(), x[-1].item()) == (-1.0, 1.0)
    torch.testing.assert_close(x.double(), torch.linspace(-1, 1, levels, dtype=torch.float64), atol=1e-7, rtol=0)
    assert torch.equal(data.unscale(x), pixels)
    assert torch.equal(data.unscale(x + 0.98 / (levels - 1)), pixels.clamp(max=levels - 1))  # just under half a level
    assert torch.equal(data.unscale(torch.tensor([-3.0, 3.0])), torch.tensor([0, levels - 1], dtype=torch.uint8))


def test_to_8bit_spreads_the_levels() -> None:
    data = Numbered(batch_size=8)
    data.levels = 17
    assert data.to_8bit(torch.tensor([0, 8, 16], dtype=torch.uint8)).tolist() == [0, 128, 255]
    data.levels = 256
    assert data.to_8bit(torch.arange(256, dtype=torch.uint8)).tolist() == list(range(256))


def test_a_batch_holds_the_images_its_index_names() -> None:
    data = with_trainer(Numbered(batch_size=8))
    for batch in training_batches(data, 6):
        assert set(batch) == {"image", "label", "index"}
        assert torch.equal(batch["image"], data.scale(data.train.pixels[batch["index"]]))
        assert torch.equal(batch["label"], batch["index"] % 3)


def test_setup_loads_once_and_tells_the_facts() -> None:
    data = Numbered(batch_size=8)
    data.setup()
    data.setup("test")
    assert (data.loads, data.channels, data.resolution, data.levels, data.classes) == (1, 1, 2, 256, 3)


def test_half_the_images_are_flipped_and_the_same_ones_again() -> None:
    first, again, other = (with_trainer(Numbered(40, flip=True), seed=seed) for seed in (1, 1, 2))
    flips = [torch.cat([is_mirrored(d, b) for b in training_batches(d, 100)]) for d in (first, again, other)]
    assert torch.equal(flips[0], flips[1])
    assert not torch.equal(flips[0], flips[2])
    assert abs(flips[0].float().mean().item() - 0.5) < 4 * 0.5 / 4000**0.5  # four standard errors
    assert not is_mirrored(first, training_batches(with_trainer(Numbered(40), seed=1), 1)[0]).any()


def test_flips_and_order_do_not_depend_on_devices_or_on_where_a_run_was_resumed() -> None:
    one = training_batches(with_trainer(Numbered(8, flip=True)), 4)
    parts = [training_batches(with_trainer(Numbered(8, flip=True), rank=r, world=2, accumulate=2), 8) for r in (0, 1)]
    for step in range(4):
        joined = [parts[rank][2 * step + micro]["image"] for micro in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat(joined), one[step]["image"])
    resumed = training_batches(with_trainer(Numbered(8, flip=True), step=2), 2)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one[2:], resumed, strict=True))


def test_evaluation_loaders_never_flip_and_never_repeat() -> None:
    seen: list[int] = []
    for rank in range(3):
        data = with_trainer(Numbered(6, flip=True), rank=rank, world=3)
        for batch in data.val_dataloader():
            assert not is_mirrored(data, data.on_after_batch_transfer(batch, 0)).any()
            seen += batch["index"].tolist()
    assert sorted(seen) == list(range(7))


def test_memory_is_pinned_for_cuda_alone() -> None:
    data = with_trainer(Numbered(8))
    assert [loader().pin_memory for loader in (data.train_dataloader, data.test_dataloader)] == [False, False]
    data.trainer.strategy.root_device = torch.device("cuda")
    assert [loader().pin_memory for loader in (data.train_dataloader, data.test_dataloader)] == [True, True]


def test_errors_of_the_batch_size() -> None:
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0$"):
        Numbered(0)
    with pytest.raises(ValueError, match=r"^data\.batch_size=41 is more than the 40 training images: lower it$"):
        with_trainer(Numbered(41))
    unfitted = Numbered(41)
    unfitted.setup()  # what does not train needs no batch of training images
    assert len(unfitted.train.pixels) == 40
    with pytest.raises(ValueError, match=r"^data\.batch_size=8 must be a multiple of 3 "):
        with_trainer(Numbered(8), world=3)


class Recorder(LightningModule):
    """Records what a Trainer hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = 4
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []
        self.validated: list[int] = []

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        self.seen.append(batch["image"])
        return (self.weight - batch["image"].mean()) ** 2

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.validated += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(steps: int, path: Any, checkpoint: Any = None) -> tuple[Recorder, Trainer]:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=2,
        val_check_interval=6,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )
    module = Recorder()
    trainer.fit(module, datamodule=Numbered(8, flip=True), ckpt_path=checkpoint)
    return module, trainer


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_gets_the_keyed_batches_and_goes_on_with_them_after_a_resume(tmp_path: Any) -> None:
    whole, _ = fit(9, tmp_path)
    expected = training_batches(with_trainer(Numbered(8, flip=True), seed=4, accumulate=2), 18)
    assert [torch.equal(a, b["image"]) for a, b in zip(whole.seen, expected, strict=True)] == [True] * 18
    assert whole.validated == list(range(7)) * 3
    _, trainer = fit(4, tmp_path)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    rest, _ = fit(9, tmp_path, tmp_path / "four.ckpt")
    assert [torch.equal(a, b) for a, b in zip(rest.seen, whole.seen[8:], strict=True)] == [True] * 10
    assert torch.equal(rest.weight, whole.weight)


def test_digits_are_split_for_good() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    data = Digits(batch_size=128)
    data.setup()
    np.random.seed(2)
    again = Digits(batch_size=4)
    again.setup()
    splits = (data.train, data.val, data.test)
    assert [len(s.pixels) for s in splits] == [1309, 128, 360]
    assert all(
        torch.equal(a.pixels, b.pixels) for a, b in zip(splits, (again.train, again.val, again.test), strict=True)
    )
    everything = torch.cat([s.pixels for s in splits]).flatten(1)
    labels = torch.cat([cast(Tensor, s.labels) for s in splits])
    assert len(torch.unique(everything, dim=0)) == 1797  # all digits differ, so none is in two splits
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.levels, data.classes, int(everything.max())) == (17, 10, 16)
    first = cast(Tensor, data.test.labels)[:8]  # a changed split would void every published number
    assert first.tolist() == [2, 8, 2, 6, 6, 7, 1, 9]


def test_photo_patches_share_no_pixel_between_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.indices((427, 640))
    tagged = np.stack([columns % 256, columns // 256, rows % 256], axis=-1).astype(np.uint8)
    monkeypatch.setattr(photo_patches, "load_sample_images", lambda: SimpleNamespace(images=[tagged]))
    data = PhotoPatches(batch_size=16)
    data.setup()
    places = []
    for split in (data.train, data.val, data.test):
        p = split.pixels.long()
        places.append(p[:, 0] + 256 * p[:, 1])  # the column that each pixel came from
        assert torch.equal(places[-1][:, :, 1:] - places[-1][:, :, :-1], torch.ones(len(p), 32, 31, dtype=torch.long))
        assert torch.equal((p[:, 2, 1:] - p[:, 2, :-1]) % 256, torch.ones(len(p), 31, 32, dtype=torch.long))
    train, val, test = (set(place.flatten().tolist()) for place in places)
    assert not (train & val) | (train & test) | (val & test)
    assert [len(s.pixels) for s in (data.train, data.val, data.test)] == [2450, 39, 52]


def test_photo_patches_are_the_two_photographs() -> None:
    data = PhotoPatches(batch_size=128, stride=16)
    data.setup()
    assert data.train.pixels.shape == (2 * 25 * 25, 3, 32, 32)
    assert (len(data.val.pixels), len(data.test.pixels), data.levels, data.classes) == (78, 104, 256, 2)
    assert cast(Tensor, data.train.labels).tolist() == [0] * 625 + [1] * 625  # the temple, the flower
    assert cast(Tensor, data.test.labels).bincount().tolist() == [52, 52]
    sky, flower = data.train.pixels[0].float().mean((1, 2)), data.train.pixels[-1].float().mean((1, 2))
    assert sky[2] > 200  # the temple's sky first
    assert flower[0] > flower[1] > flower[2]  # and orange petals last
    with pytest.raises(ValueError, match=r"^stride must be at least 1, got 0$"):
        PhotoPatches(batch_size=8, stride=0)
    with pytest.raises(ValueError, match=r"^resolution must be from 1 to 96, got 128$"):
        PhotoPatches(batch_size=8, resolution=128)


def test_smaller_photo_patches_are_of_the_same_places() -> None:
    large, small = (PhotoPatches(batch_size=128, stride=16, resolution=side) for side in (32, 16))
    large.setup()
    small.setup()
    assert small.resolution == 16
    assert torch.equal(small.train.pixels[0], large.train.pixels[0, :, :16, :16])
    assert torch.equal(small.test.pixels[1], large.test.pixels[0, :, :16, 16:])  # edge to edge


def test_what_a_set_declares_must_be_true() -> None:
    class Wrong(Digits):
        declared = 8, 256

    with pytest.raises(ValueError, match=r"declares \(resolution, levels\) = \(8, 256\), but has resolution 8 and 17"):
        Wrong(batch_size=4).setup()
