"""The benchmark of training steps compares equal things, and sees where they are not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from noising.commands.training_benchmark import BareLoop, Turns, flops, peak_bytes, require_equal
from tests.helpers import Command

CPU = torch.device("cpu")


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "summary.json").read_text())
    return found


@pytest.mark.usefixtures("figures")
def test_loops_of_equal_networks_are_compared(noising: Command, tmp_path: Path) -> None:
    options = ("benchmark.resolutions=[8]", "benchmark.precisions=[32-true]", "benchmark.repeats=2", "batch_size=16")
    done = noising("benchmark", "benchmark=train", *options, "benchmark.steps=1", "hydra.run.dir=out")
    assert done.code == 0, done.err
    found = summary(tmp_path)
    card = found["cards"]["benchmark/train_8_32_diffusers"]
    assert found["benchmark/train_8_32_diffusers"] == pytest.approx(
        card["ours_images_per_second"] / card["theirs_images_per_second"], rel=0.5
    )
    assert card["least"] <= found["benchmark/train_8_32_diffusers"] <= card["greatest"]
    assert card["theirs_parameters"] == pytest.approx(card["parameters"], rel=0.03)
    assert card["theirs_flops_an_image"] == pytest.approx(card["flops_an_image"], rel=0.03)
    assert card["matmul_gflops"] > 1
    bare = found["cards"]["benchmark/train_8_32_a_bare_loop"]
    assert (bare["theirs_parameters"], bare["theirs_flops_an_image"]) == (card["parameters"], card["flops_an_image"])
    assert (tmp_path / "out" / "figures" / "ratios.png").stat().st_size > 5000
    there = importlib.util.find_spec("denoising_diffusion_pytorch") is not None
    assert ("benchmark/train_8_32_denoising_diffusion_pytorch" in found) == there
    assert ("denoising-diffusion-pytorch is left out" in done.out) == (not there)


def test_what_a_trainer_adds_is_compared(noising: Command, tmp_path: Path) -> None:
    done = noising(
        "benchmark",
        "benchmark=overhead",
        "benchmark.steps=5",
        "benchmark.repeats=3",
        "batch_size=4",
        "hydra.run.dir=out",
    )
    assert done.code == 0, done.err
    card = summary(tmp_path)["cards"]["benchmark/overhead"]
    assert card["bare_us"] > 100
    assert card["lightning_us"] > 0


def test_a_bare_loop_with_other_losses_is_seen(
    noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BareLoop.step
    monkeypatch.setattr(BareLoop, "step", lambda self: 1.01 * step(self))
    done = noising("benchmark", "benchmark=overhead", "benchmark.steps=2", "benchmark.repeats=1", "hydra.run.dir=out")
    assert done.code == 1
    assert "Tensor-likes are not close" in done.err


def test_losses_must_be_equal_in_the_first_turn() -> None:
    turns = Turns([], 2, CPU)
    turns.losses, turns.others = [torch.tensor(1.0), torch.tensor(2.0)], [[torch.tensor(1.0), torch.tensor(2.001)]]
    require_equal(turns)
    turns.others = [[torch.tensor(1.0), torch.tensor(2.1)]]
    with pytest.raises(AssertionError):
        require_equal(turns)


def test_memory_is_that_of_the_tensors_at_once() -> None:
    def step() -> None:
        one = torch.ones(1 << 18)  # 1 MiB
        two = one + 1
        del one
        two * 2

    assert peak_bytes(step, CPU) == pytest.approx(2 << 20, rel=0.01)


def test_operations_are_those_of_both_passes() -> None:
    layer = nn.Linear(30, 20)
    loop = SimpleNamespace(step=lambda: layer(torch.ones(8, 30)).sum().backward())
    assert flops(loop.step) == 2 * (2 * 8 * 30 * 20)  # forward, and the weight's gradient
