"""Checkpoints: written when promised, whole after any crash, and enough to go on from exactly."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from noising.commands.continuing import checkpoint_to_continue
from noising.errors import ConfigError
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.training.checkpoints import (
    AtomicCheckpointIO,
    LastCheckpoint,
    checkpoint_callbacks,
    load_checkpoint,
    older_checkpoints,
)
from noising.training.ema import EMA


class FromStep(IterableDataset[Tensor]):
    """Batch k is a pure function of k, and the first one is that of the trainer's step."""

    module: Linear

    def __iter__(self) -> Iterator[Tensor]:
        k = self.module.trainer.global_step * self.module.trainer.accumulate_grad_batches
        while True:
            yield torch.randn(4, 2, generator=torch.Generator().manual_seed(k))
            k += 1


class Linear(LightningModule):
    """A small regression under Adam, whose bound in validation is what `bounds` says, one after the other."""

    def __init__(self, bounds: tuple[float, ...] = (), fail_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.denoiser = nn.Linear(2, 2)
        self.bounds = bounds
        self.batches: list[int] = []
        self.validated: list[int] = []
        self.fail_at = fail_at
        self.data = FromStep()
        self.data.module = self

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self.fail_at:
            raise RuntimeError("out of luck")
        self.batches.append(batch_idx)
        loss: Tensor = (self.denoiser(batch) - batch.flip(1)).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.global_step)
        self.log("val/bound", self.bounds[self.global_step // 2 - 1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.data, batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.data, batch_size=None)


class StepsOfLast(Callback):
    """Notes, at the start of each batch, which step last.ckpt holds."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.held: dict[int, int] = {}

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self.run.last_checkpoint.exists():
            self.held[trainer.global_step] = load_checkpoint(self.run.last_checkpoint)["global_step"]


def fit(
    run: Run, module: Linear, steps: int, *callbacks: Callback, every: int = 3, keep: int = 1, **options: Any
) -> Trainer:
    options = {"limit_val_batches": 0 if not module.bounds else 1, **options}
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        callbacks=[*callbacks, *checkpoint_callbacks(Results(run), every, keep)],
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
        **{"val_check_interval": 2, **options},
    )
    resume = str(run.last_checkpoint) if run.last_checkpoint.exists() else None
    trainer.fit(module, ckpt_path=resume)
    return trainer


def files(run: Run) -> list[str]:
    return sorted(path.name for path in run.last_checkpoint.parent.iterdir())


def same_training(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer_states"], other["optimizer_states"], rtol=0, atol=0)
    torch.testing.assert_close(one["ema"], other["ema"], rtol=0, atol=0)
    assert one["global_step"] == other["global_step"]


def test_last_is_written_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path)
    steps = StepsOfLast(run)
    fit(run, Linear(), 8, steps, accumulate_grad_batches=2)
    assert steps.held == {3: 3, 4: 3, 5: 3, 6: 6, 7: 6}
    assert load_checkpoint(run.last_checkpoint)["global_step"] == 8
    assert files(run) == ["last.ckpt"]


def test_best_is_the_lowest_bound_and_is_remembered_in_a_moved_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "here")
    bounds = (4.0, 2.0, 3.0, float("nan"), 2.5, 1.0)
    fit(run, Linear(bounds), 6)
    assert load_checkpoint(run.best_checkpoint)["global_step"] == 4
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Run(tmp_path / "there")
    fit(moved, Linear(bounds), 10)
    assert load_checkpoint(moved.best_checkpoint)["global_step"] == 4
    fit(moved, Linear(bounds), 12)
    assert load_checkpoint(moved.best_checkpoint)["global_step"] == 12
    assert files(moved) == ["best.ckpt", "last.ckpt"]


def _die(folder: str, kill_at: int, bounds: tuple[float, ...]) -> None:
    class Kill(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    fit(Run(folder), Linear(bounds), 12, EMA(0.9), Kill(), every=4, **OPTIONS)


OPTIONS: dict[str, Any] = {
    "accumulate_grad_batches": 2,
    "val_check_interval": 4,
}  # a validation every other step


@pytest.mark.parametrize("bounds", [(), (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)])
def test_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, bounds: tuple[float, ...]) -> None:
    """Without and with a validation, and so best.ckpt, at the step of last.ckpt."""
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    fit(whole, Linear(bounds), 12, EMA(0.9), every=4, **OPTIONS)
    process = multiprocessing.get_context("fork").Process(target=_die, args=(str(killed.path), 7, bounds))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert load_checkpoint(killed.last_checkpoint)["global_step"] == 4
    module = Linear(bounds)
    fit(killed, module, 12, EMA(0.9), every=4, **OPTIONS)
    assert module.batches == list(range(8, 24))
    assert module.validated == ([6, 8, 10, 12] if bounds else [])
    assert files(killed) == files(whole)
    same_training(load_checkpoint(killed.last_checkpoint), load_checkpoint(whole.last_checkpoint))


@pytest.mark.parametrize("batch", [10, 11])  # at the start and in the middle of an accumulation
def test_run_that_raised_goes_on_from_the_step_it_had_reached(tmp_path: Path, batch: int) -> None:
    whole, raised = Run(tmp_path / "whole"), Run(tmp_path / "raised")
    fit(whole, Linear(), 8, EMA(0.9), every=100, accumulate_grad_batches=2)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(raised, Linear(fail_at=batch), 8, EMA(0.9), every=100, accumulate_grad_batches=2)
    assert load_checkpoint(raised.last_checkpoint)["global_step"] == 5
    fit(raised, Linear(), 8, EMA(0.9), every=100, accumulate_grad_batches=2)
    same_training(load_checkpoint(raised.last_checkpoint), load_checkpoint(whole.last_checkpoint))


def test_crash_in_the_middle_of_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    before = path.read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        io.save_checkpoint({"step": 2}, path)
    assert io.failure == f"{path} cannot be written (No space left on device)"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    io.save_checkpoint({"step": 3}, path)
    assert io.failure is None
    assert io.load_checkpoint(path) == {"step": 3}


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no checkpoint .*missing\.ckpt$"):
        load_checkpoint(tmp_path / "missing.ckpt")
    whole = tmp_path / "best.ckpt"
    torch.save({"weights": torch.zeros(1000)}, whole)
    for length in (0, 100, whole.stat().st_size - 30):
        (tmp_path / "cut.ckpt").write_bytes(whole.read_bytes()[:length])
        with pytest.raises(
            ValueError,
            match=r"^.*cut\.ckpt is not a checkpoint, or is truncated: use another one from its folder \(best\.ckpt\)",
        ):
            load_checkpoint(tmp_path / "cut.ckpt")
    torch.save({"code": nn.Linear(1, 1)}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match=r"^.*code\.ckpt cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "code.ckpt")


def test_a_validation_that_is_due_comes_before_the_checkpoint(tmp_path: Path) -> None:
    """A run resumed from the file would not repeat it."""
    saved: list[str] = []
    trainer: Any = SimpleNamespace(
        global_step=10,
        enable_validation=True,
        val_check_batch=20,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        sanity_checking=False,
        fast_dev_run=False,
        is_global_zero=True,
        strategy=SimpleNamespace(checkpoint_io=None),
        loggers=[],
        save_checkpoint=lambda path: saved.append(f"step {trainer.global_step}"),
    )
    module: Any = None
    last = LastCheckpoint(Results(Run(tmp_path)), every=5)
    last.on_train_batch_end(trainer, module, None, None, batch_idx=19)
    assert saved == []
    last.on_validation_end(trainer, module)
    assert saved == ["step 10"]
    trainer.global_step = 15
    last.on_train_batch_end(trainer, module, None, None, batch_idx=29)
    assert saved == ["step 10", "step 15"]


@pytest.mark.parametrize(("keep", "older"), [(1, []), (3, [6, 8]), (5, [2, 4, 6, 8])])
def test_a_chosen_number_is_kept(keep: int, older: list[int], tmp_path: Path) -> None:
    run, module = Run(tmp_path), Linear()
    last = LastCheckpoint(Results(run), every=2, keep=keep)
    Trainer(
        max_steps=9,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[last],
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
    ).fit(module)
    assert files(run) == ["last.ckpt", *(f"step_{step:06d}.ckpt" for step in older)]
    assert [load_checkpoint(run.last_checkpoint.with_name(name))["global_step"] for name in files(run)] == [9, *older]


def test_a_chosen_number_is_kept_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on FAT and some network file systems; and where no name can be given at all, the training goes on."""

    def refuse(*paths: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run = Run(tmp_path / "one")
    fit(run, Linear(), 9, every=2, keep=3)
    assert files(run) == ["last.ckpt", "step_000006.ckpt", "step_000008.ckpt"]
    assert [load_checkpoint(run.last_checkpoint.with_name(name))["global_step"] for name in files(run)] == [9, 6, 8]
    assert caplog.messages == []
    monkeypatch.setattr(shutil, "copyfileobj", refuse)
    other = Run(tmp_path / "two")
    fit(other, Linear(), 4, every=2, keep=3)
    assert files(other) == ["last.ckpt"]
    assert caplog.messages == [
        f"{other.last_checkpoint} cannot be stored under its step (Operation not permitted); training goes on"
    ]


def test_the_newest_are_kept_where_steps_outgrow_six_digits(tmp_path: Path) -> None:
    """By number: as text 1000000 comes before 999560, and each newer one was deleted as soon as it was written."""
    trainer: Any = SimpleNamespace(
        global_step=0,
        sanity_checking=False,
        fast_dev_run=False,
        is_global_zero=True,
        strategy=SimpleNamespace(checkpoint_io=None),
        loggers=[],
        save_checkpoint=lambda path: AtomicCheckpointIO().save_checkpoint({"global_step": trainer.global_step}, path),
    )
    run = Run(tmp_path)
    run.last_checkpoint.parent.mkdir()
    (run.last_checkpoint.parent / "step_of_mine.ckpt").touch()
    last = LastCheckpoint(Results(run), every=220, keep=3)
    for step in range(999_560, 1_001_101, 220):
        trainer.global_step = step
        last.save(trainer)
    assert files(run) == ["last.ckpt", "step_1000660.ckpt", "step_1000880.ckpt", "step_of_mine.ckpt"]
    assert load_checkpoint(run.last_checkpoint.with_name("step_1000880.ckpt"))["global_step"] == 1_000_880
    assert older_checkpoints(tmp_path) == []


def test_the_newest_of_many_digits_is_the_one_to_go_on_from(tmp_path: Path) -> None:
    run = Run(tmp_path)
    trainer: Any = None
    module: Any = None
    run.last_checkpoint.parent.mkdir()
    for step in (999_780, 1_000_000, 999_560):
        torch.save({}, run.last_checkpoint.with_name(f"step_{step:06d}.ckpt"))
    with pytest.raises(ConfigError, match=r"is missing; to go on from step_1000000\.ckpt, copy it to last\.ckpt$"):
        checkpoint_to_continue(run, trainer, module)
    run.last_checkpoint.touch()
    with pytest.raises(ValueError, match=r"\(step_999560\.ckpt, step_999780\.ckpt, step_1000000\.ckpt\)"):
        load_checkpoint(run.last_checkpoint)
