"""Every YAML builds with the others' defaults, and one training step of it gives every weight a gradient."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir

from noising.config.theory import build_sampler
from noising.data.image_data import ImageData
from noising.diffusion.gaussian import per_image
from noising.experiment import Experiment
from tests.helpers import COMPANIONS, CONF, composed

BUILT = (
    "schedule",
    "parameterization",
    "noise_label",
    "variance",
    "times",
    "objective",
    "weighting",
    "decoder",
)
BUILT += ("bound", "sampler", "grid", "model", "optimizer", "lr_schedule")
CHOICES = [(group, path.stem) for group in BUILT for path in sorted((CONF / group).glob("*.yaml"))]
# networks of published size are built, without memory, by test_published_recipes.py
CHOICES = [(group, choice) for group, choice in CHOICES if group != "model" or choice == "unet"]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_builds_and_descends(group: str, choice: str, digits: ImageData) -> None:
    cfg = composed(f"{group}={choice}", *COMPANIONS.get(choice, ()))
    module = Experiment(cfg, digits).module
    build_sampler(cfg, cfg.timesteps)
    x = digits.scale(digits.train.pixels[:8])
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    before = module.objective(module.denoiser, x, t, noise)["loss"]
    assert before.shape == (8,)
    optimizer = module.optimizer(list(module.denoiser.parameters()))
    for _ in range(8):
        optimizer.zero_grad()
        module.objective(module.denoiser, x, t, noise)["loss"].mean().backward()
        optimizer.step()
    after = module.objective(module.denoiser, x, t, noise)["loss"]
    assert after.mean() < before.mean()


def test_simple_loss_of_a_silent_network_is_the_noise_itself(digits: ImageData) -> None:
    """The last layer starts at zero: ε̂ = 0, and the loss of each image is its mean squared noise."""
    module = Experiment(composed(), digits).module
    x = digits.scale(digits.train.pixels[:8])
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    loss = module.objective(module.denoiser, x, t, noise)["loss"]
    torch.testing.assert_close(loss, per_image(noise**2) / noise[0].numel())


@pytest.mark.parametrize("experiment", [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))])
def test_experiments_compose(experiment: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}"])
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert f"python train.py experiment={experiment}" in text
    assert cfg.trainer.max_steps >= cfg.trainer.val_check_interval


def test_same_seed_same_first_weights(digits: ImageData) -> None:
    one, two, other = (Experiment(composed(f"seed={seed}"), digits).module.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
