"""From a config to the theory: where a sampler's steps begin, and what an objective compares."""

from __future__ import annotations

import itertools

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from noising.cli.sweeps import presets
from noising.config.theory import build_recipe, build_sampler
from noising.diffusion.parameterizations import Epsilon, Velocity
from noising.diffusion.schedules import Cosine
from noising.errors import ConfigError
from noising.experiment import Experiment
from noising.runs.resume import changed_options
from tests.helpers import CONF, composed


@pytest.mark.parametrize(
    ("grid", "steps", "begins"),
    [("leading", 1, "0.001"), ("leading", 600, "0.6"), ("leading", 10, ""), ("uniform", 1, ""), ("quadratic", 50, "")],
)
def test_a_grid_that_begins_far_from_noise_says_so(
    grid: str, steps: int, begins: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed(f"grid={grid}", "sampler=ddim", f"sampler.steps={steps}")
    build_sampler(config, 1000, Cosine(1000))
    said = [record.getMessage() for record in caplog.records]
    expected = f"sampling begins at t = {begins}, but x_T is drawn for t = 1: use a grid that begins at 1"
    assert said == ([expected] if begins else [])


COMPARED = "parameterization@objective.compared"


def test_what_is_compared_is_an_option_of_the_objective() -> None:
    """Absent, an old run's options are the same as today's."""
    config = composed()
    plain = build_recipe(config, 8, 17).objective
    assert plain.compared is None
    now = OmegaConf.to_container(config)
    assert isinstance(now, dict)
    before = {**now, "objective": {"_target_": config.objective._target_}}
    assert changed_options(before, now, ()) == []
    given = build_recipe(composed(f"{COMPARED}=velocity", "objective.sigma_floor=0.1"), 8, 17).objective
    assert isinstance(given.compared, Velocity)
    level = Cosine(1000)(torch.tensor([1e-5, 0.5], dtype=torch.float64))
    expected = [float(1 / (0.1 * level.alpha[0]) ** 2 * level.sigma[0] ** 2), float(1 / level.alpha[1] ** 2)]
    found = given.weight(Cosine(1000), level, Epsilon().gain(level)).flatten().tolist()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective=continuous_bound", f"{COMPARED}=velocity"],
            "objective.compared: the loss of ContinuousBound is the same whatever is compared; "
            "use objective=regression, weighted_bound or hybrid, or leave it out",
        ),
        (
            ["objective.sigma_floor=0.05"],
            "objective: sigma_floor is of a comparison: add parameterization@objective.compared=velocity",
        ),
        (
            ["schedule=zero_terminal_snr", f"{COMPARED}=velocity"],
            "parameterization: Epsilon does not determine the clean image at t = 1, where ZeroTerminalSNR leaves no "
            "signal (zero terminal SNR); use velocity, flow, clean_image or karras",
        ),
        (
            ["schedule=rectified_flow", "parameterization=clean_image", f"{COMPARED}=flow"],
            "objective.compared: for CleanImage compared as Flow, the mean weight is infinite, by the levels near "
            "t = 0, where σ is 0; use objective.sigma_floor=0.05, or parameterization=velocity or flow, or times=grid",
        ),
    ],
)
def test_a_comparison_that_cannot_be_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_recipe(composed(*overrides), 8, 17)
    assert str(refused.value) == message


def test_an_uneven_comparison_is_said_before_training(caplog: pytest.LogCaptureFixture) -> None:
    for overrides, lines in (([], 0), ([f"{COMPARED}=velocity"], 1)):
        caplog.clear()
        _ = Experiment(composed(*overrides)).module
        said = [record.getMessage() for record in caplog.records if "objective.compared" in record.getMessage()]
        assert len(said) == lines, said
    assert said[0].startswith("objective.compared: for Epsilon compared as Velocity, the largest weight (at λ = -19.")


def test_nine_is_a_sweep_of_all_pairs() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["experiment=nine"], return_hydra_config=True)
        assert config.hydra.mode.name == "MULTIRUN"
        names, choices = zip(*(word.split("=") for word in presets(config)), strict=True)
        assert names == ("parameterization", COMPARED)
        pairs = list(itertools.product(*(choice.split(",") for choice in choices)))
        assert len({*pairs}) == 9
        for pair in pairs:
            words = [f"{name}={choice}" for name, choice in zip(names, pair, strict=True)]
            recipe = build_recipe(compose("train", ["experiment=nine", *words]), 8, 17)
            found = (type(recipe.parameterization).__name__, type(recipe.objective.compared).__name__)
            assert found == tuple(choice.title().replace("_", "") for choice in pair)
