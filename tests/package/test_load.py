"""noising.load: a trained network with its config and data, from the folder of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import noising as package
from noising.diffusion.drawing import draw_images
from noising.errors import ConfigError


def test_load_gives_the_averaged_weights_that_drew_the_samples(trained: Path) -> None:
    run = package.load(trained)
    assert (run.step, run.config.timesteps) == (20, 1000)
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    weights = run.denoiser.state_dict()
    assert all(torch.equal(weights[name], average) for name, average in checkpoint["ema"]["weights"].items())
    assert any(not torch.equal(weights[name], checkpoint["state_dict"][f"denoiser.{name}"]) for name in weights)
    from noising.config.theory import build_sampler

    images = draw_images(run.denoiser, build_sampler(run.config, 1000), (1, 8, 8), run.config.seed, range(9))
    with Image.open(trained / "samples.png") as grid:
        pixels = np.asarray(grid)[9::18, 9::18]  # the middle of every enlarged pixel
    first = run.data.to_8bit(run.data.unscale(images[0]))[0].numpy()
    np.testing.assert_array_equal(pixels[1:9, 1:9], first)


def test_load_takes_the_last_of_a_runs_checkpoints(trained: Path, tmp_path: Path) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    assert [package.load(path).path for path in (trained, last.parent, last)] == [last, last, last]
    elsewhere = tmp_path / "on_a_larger_disk"
    elsewhere.mkdir()
    shutil.copy(last, elsewhere)
    assert package.load(elsewhere).path == elsewhere / "last.ckpt"


def test_load_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run's folder or checkpoint file there"):
        package.load(tmp_path / "nothing")
