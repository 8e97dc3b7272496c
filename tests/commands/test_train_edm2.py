"""Training by EDM2's row: the uncertainty is trained and averaged, and a run goes on bitwise where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from noising.errors import ConfigError
from noising.experiment import Experiment
from noising.models.edm2 import EDM2UNet
from noising.trained import load
from tests.helpers import CONF, Command, composed

OPTIONS = (
    *("experiment=edm2", "model.width=8", "model.dropout=0.1", "label_dropout=0.1", "trainer.accelerator=cpu"),
    *("trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "checkpoint_every_n_steps=2"),
    *("callbacks.samples=null", "callbacks.quality=null", "bound=stratified", "bound.times=4"),
    *("validation_bound.times=4", "data.batch_size=16", "lr_schedule.warmup_images=32"),
)


def composed_of_edm2(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["experiment=edm2", "model.width=8", *overrides])


def checkpoint(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.slow
def test_a_run_goes_on_bitwise_and_averages_its_uncertainty(noising: Command, tmp_path: Path) -> None:
    for folder, steps in (("whole", 4), ("part", 2)):
        outcome = noising("train", *OPTIONS, f"trainer.max_steps={steps}", f"hydra.run.dir={folder}")
        assert outcome.code == 0, outcome.err
    begun = checkpoint(tmp_path / "part")
    outcome = noising("train", *OPTIONS, "trainer.max_steps=4", "hydra.run.dir=part", "resume=true")
    assert outcome.code == 0, outcome.err
    whole, part = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "part")
    assert equal(whole["state_dict"], part["state_dict"])
    assert equal(whole["ema"]["weights"], part["ema"]["weights"])
    name = "model.log_variance.linear.weight"
    assert not torch.equal(begun["ema"]["weights"][name], part["ema"]["weights"][name])
    assert not torch.equal(part["state_dict"][f"denoiser.{name}"], part["ema"]["weights"][name])
    assert whole["ema"]["decay"] == pytest.approx(0.75 ** (6.937203937601809 + 1))
    assert len(whole["optimizer_states"][0]["state"]) == len(whole["ema"]["weights"])
    network: Any = load(tmp_path / "whole").denoiser.model
    assert isinstance(network, EDM2UNet)
    assert torch.equal(network.get_parameter(name.removeprefix("model.")), whole["ema"]["weights"][name])


def test_a_loss_that_reads_an_uncertainty_needs_a_network_that_has_one() -> None:
    for config, message in (
        (
            composed("objective=uncertainty_weighted"),
            "UncertaintyWeighted needs a network that estimates",
        ),
        (composed_of_edm2("model.log_variance_waves=0"), "such as model=edm2_64"),
    ):
        with pytest.raises(ConfigError, match=message):
            _ = Experiment(config).module


def test_an_uncertainty_that_no_loss_reads_is_not_trained() -> None:
    """Other ranks would wait for its gradient."""
    for objective, trains in (("regression", False), ("uncertainty_weighted", True)):
        module = Experiment(composed_of_edm2(f"objective={objective}")).module
        network: Any = module.denoiser.model
        assert [p.requires_grad for p in network.log_variance.parameters()] == [trains]
        head = network.log_variance.linear.weight
        assert any(p is head for p in module._trained) is trains
