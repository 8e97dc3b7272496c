"""What a training is said to cost is what it costs, and measuring its samples stays below the training itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from noising.data.image_data import ImageData
from noising.experiment import Experiment
from noising.models.unet import UNet
from noising.training.callbacks.forecast import Forecast
from tests.helpers import SMALL, Command, composed

MEASURING = [
    *SMALL[:-1],
    "metrics.n=70",
    "metrics.repeats=2",
    "callbacks.quality.every_n_steps=5",
    "callbacks.quality.n=65",
]


@pytest.mark.parametrize("more", [[], ["sampler=heun", "sampler.steps=3", "trainer.accumulate_grad_batches=2"]])
def test_the_evaluations_said_are_those_made(
    more: list[str], noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {True: 0, False: 0}
    forward = UNet.forward

    def counted(self: UNet, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        made[torch.is_grad_enabled()] += len(x)
        return forward(self, x, *given, **named)

    monkeypatch.setattr(UNet, "forward", counted)
    monkeypatch.setattr(Forecast, "_seconds", lambda self, module: 1.0)  # which evaluates too
    assert noising("train", *MEASURING, *more, "hydra.run.dir=run").code == 0
    (line,) = re.findall("planned evaluations.*", (tmp_path / "run" / "train.log").read_text())
    training, checks, end = (int(found.replace(",", "")) for found in re.findall(r"([\d,]+) \(about", line))
    assert training == 3 * made[True] == 3 * 20 * 128
    assert checks + end == made[False]


def test_a_resumed_training_counts_what_is_left(noising: Command, tmp_path: Path) -> None:
    options = [*SMALL, "callbacks.samples=null", "hydra.run.dir=run"]
    assert noising("train", *options, "trainer.max_steps=10").code == 0
    assert noising("train", *options, "resume=true").code == 0
    lines = re.findall("planned evaluations.*", (tmp_path / "run" / "train.log").read_text())
    assert ["training 3,840 (" in line for line in lines] == [True, True]


def test_an_evaluation_is_timed_on_the_images_of_a_batch(digits: ImageData) -> None:
    experiment = Experiment(composed("model.width=8"), digits)
    seen = []

    class Watched(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor, noise_label: torch.Tensor, class_label: torch.Tensor | None) -> torch.Tensor:
            seen.append((len(x), self.training))
            return self.network(x, noise_label, class_label)  # type: ignore[no-any-return]

    module = experiment.module
    module.denoiser.model = Watched(module.denoiser.model)
    assert 1e-6 < Forecast(digits, experiment.sampler)._seconds(module) < 0.1
    assert seen == [(8, False), (8, False), (64, False), (64, False)]
    assert module.denoiser.training


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["trainer.max_steps=2200"], 360),  # as many as test images
        (["trainer.max_steps=440"], 281),  # 3 repeats of 100 steps: half of 3 x 440 x 128 evaluations
        (["trainer.max_steps=440", "sampler.steps=200"], 140),
        (["trainer.max_steps=440", "metrics.repeats=1"], 360),
        (["trainer.max_steps=1"], 100),
        (["trainer.max_steps=1", "metrics.n=300"], 300),  # chosen
    ],
)
def test_as_many_samples_are_measured_as_half_of_the_training_costs(
    options: list[str], count: int, digits: ImageData
) -> None:
    quality = Experiment(composed(*options), digits).quality
    assert quality is not None
    assert quality.count == count
