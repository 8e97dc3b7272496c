"""The benchmark of what this project's Trainer adds to a step, beside what Lightning's own adds."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from noising.commands.benchmark import Benchmark, Ratio, accelerator, device_name, now
from noising.commands.training_benchmark import (
    CLIP,
    BareLoop,
    Loop,
    NoiseImages,
    Turns,
    options,
    require_equal,
    trainer_of,
)
from noising.trained import TrainedRun


class TinyNetwork(nn.Module):
    """Two convolutions: a network that costs next to nothing, and still has a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        predicted: Tensor = self.layers(x)
        return predicted


class PlainLightning(Loop):
    """The steps of a bare loop by Lightning's Trainer, with no callback but a clock."""

    def __init__(self, bare: BareLoop) -> None:
        self._module = _Plain(bare)
        self.network = bare.network

    def take(self, steps: int, device: torch.device) -> tuple[float, list[Tensor]]:
        """Seconds of the steps alone: the Trainer's beginning, its first step and its end are not counted."""
        clock = _Clock(device)
        trainer = Trainer(
            accelerator=accelerator(device),
            devices=1,
            max_steps=steps + 1,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=CLIP,
        )
        trainer.fit(self._module, DataLoader(_Endless(), batch_size=None))
        return clock.ended - clock.began, []


class _Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class _Plain(LightningModule):
    def __init__(self, bare: BareLoop) -> None:
        super().__init__()
        self.denoiser, self._bare = bare.module.denoiser, bare

    def training_step(self, batch: int) -> Tensor:
        return self._bare.loss()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._bare.average()

    def configure_optimizers(self) -> Any:
        return self._bare.module.optimizer(list(self.denoiser.parameters()))


class _Clock(Callback):
    """Notes when the first step and the last ended."""

    began = ended = 0.0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.began = now(self._device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ended = now(self._device)


@dataclass
class OverheadBenchmark(Benchmark):
    """Microseconds that a Trainer adds to a step of a bare loop: Lightning's own, and this project's with all it does.

    All take the same number of steps by turns; the medians over the turns count.
    """

    columns = ("time added per step, µs", "Lightning", "noising", "times less")
    needs_checkpoint = False

    steps: int = 100
    """Optimizer steps of a turn."""
    repeats: int = 15
    """Turns that are measured; a first one warms up."""

    def __post_init__(self) -> None:
        if min(self.steps, self.repeats) < 1:
            raise ValueError("steps and repeats must be at least 1")

    def run(self, trained: TrainedRun | None, device: torch.device, batch_size: int) -> list[Ratio]:
        data = NoiseImages(batch_size, 1, 8)
        data.setup()
        with torch.enable_grad(), TemporaryDirectory() as folder:
            turns = Turns([], self.steps, device)
            config = options(batch_size, (1 + self.repeats) * self.steps, device)
            trainer, module = trainer_of(config, data, Path(folder), turns, TinyNetwork())
            bare, again = (BareLoop(copy.deepcopy(module), data, device, None) for _ in range(2))
            turns.loops = [bare, PlainLightning(again)]
            trainer.fit(module, data)
        require_equal(turns)
        seconds = np.array(turns.seconds[1:]) / self.steps * 1e6
        ours, theirs = seconds[:, 0] - seconds[:, 1], seconds[:, 2] - seconds[:, 1]
        bare_us, added, others = (float(np.median(values)) for values in (seconds[:, 1], ours, theirs))
        card = {
            "bare_us": bare_us,
            "ours_us": added,
            "lightning_us": others,
            "ours_range_us": [float(ours.min()), float(ours.max())],
            "lightning_range_us": [float(theirs.min()), float(theirs.max())],
            "batch_size": batch_size,
            "steps": self.steps,
            "turns": self.repeats,
            "device": device_name(device),
            "threads": torch.get_num_threads(),
        }
        what = f"to a bare loop of {bare_us:.0f} µs over two convolutions"
        return [Ratio("overhead", what, f"{others:.0f}", f"{added:.0f}", others / added, card)]
