"""The progress display shows steps, losses and the throughput of the training alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from noising.training.progress import StepProgress
from noising.training.throughput import Throughput


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Images(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": torch.zeros(1, 2, 2)}


class Timed(LightningModule):
    """A training batch takes 0.5 s (the first 100 s), a validation batch 1000 s; the loss of batch i is i."""

    def __init__(self, clock: Clock, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clock = clock
        self.fail_at = fail_at
        self.throughput = Throughput(clock)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == self.fail_at:
            raise RuntimeError("out of luck")
        self.clock.now += 0.5 if batch_idx else 100.0
        return batch_idx + 0 * self.weight.sum()

    def optimizer_step(self, *args: Any) -> None:
        super().optimizer_step(*args)
        self.throughput.count(6 * self.trainer.accumulate_grad_batches)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.clock.now += 1000.0

    test_step = validation_step

    def on_validation_end(self) -> None:
        assert self.trainer.progress_bar_callback is not None
        with self.trainer.progress_bar_callback.task("samples", 3) as advance:  # type: ignore[attr-defined]
            for _ in range(3):
                self.clock.now += 500.0
                advance(1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, bar: StepProgress, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        callbacks=[bar],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Images(), batch_size=6)


def run(tmp_path: Path, terminal: bool, **options: Any) -> tuple[StepProgress, str, Timed, Trainer]:
    clock, out = Clock(), io.StringIO()
    bar = StepProgress(Console(file=out, force_terminal=terminal, width=100), clock)
    module = Timed(clock)
    fitted = trainer(tmp_path, bar, limit_val_batches=2, check_val_every_n_epoch=None, **options)
    fitted.fit(module, loader(), loader())
    return bar, out.getvalue(), module, fitted


@pytest.mark.parametrize("accumulate", [1, 2])
def test_throughput_is_that_of_training_alone(tmp_path: Path, accumulate: int) -> None:
    options: dict[str, Any] = {"max_steps": 20, "val_check_interval": 8, "accumulate_grad_batches": accumulate}
    _, out, module, _ = run(tmp_path, False, **options)
    assert module.throughput.images_per_second == pytest.approx(6 / 0.5)
    lines = [line for line in out.splitlines() if line.startswith("training")]
    assert all(line.endswith("12 images/s") for line in lines[1:])


def test_plain_lines_come_every_tenth_and_without_control_characters(tmp_path: Path) -> None:
    _, out, module, fitted = run(tmp_path, False, max_steps=40, val_check_interval=40)
    lines = out.splitlines()
    training = [line for line in lines if line.startswith("training")]
    assert [line.split()[1] for line in training] == [f"{k}/40" for k in range(4, 41, 4)]
    assert training[4] == "training 20/40  loss 19.0000  12 images/s"
    assert [line for line in lines if line.startswith("validation")] == ["validation 1/2", "validation 2/2"]
    assert [line for line in lines if line.startswith("samples")] == [f"samples {k}/3" for k in (1, 2, 3)]
    assert "\x1b" not in out
    fitted.test(module, loader(), verbose=False)


def test_terminal_shows_a_bar_that_stays(tmp_path: Path) -> None:
    bar, out, *_ = run(tmp_path, True, max_steps=40, val_check_interval=20)
    assert "\x1b[" in out
    assert "40/40" in out
    assert "loss 39.0000" in out
    assert bar._display is None


def test_loss_is_read_only_when_the_display_is_redrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    clock = Clock()
    bar = StepProgress(Console(file=io.StringIO(), force_terminal=False), clock)
    monkeypatch.setattr(bar, "_draw_training", lambda: drawn.append(bar.trainer.global_step))

    class Fast(Timed):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            self.clock.now += 1 / 32
            return self.weight.sum()

    trainer(tmp_path, bar, max_steps=40, limit_val_batches=0).fit(Fast(clock), loader())
    assert drawn == [1, 9, 17, 25, 33, 40]  # every quarter of a second, and at the end


def test_other_ranks_count_and_show_nothing() -> None:
    out = io.StringIO()
    bar = StepProgress(Console(file=out, force_terminal=False), Clock())
    bar.disable()
    with bar.task("samples", 2) as advance:
        advance(2)
    assert out.getvalue() == ""


def test_exception_closes_the_display(tmp_path: Path) -> None:
    clock = Clock()
    bar = StepProgress(Console(file=io.StringIO(), force_terminal=True), clock)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, bar, max_steps=9, limit_val_batches=0).fit(Timed(clock, fail_at=5), loader())
    assert bar._display is None
