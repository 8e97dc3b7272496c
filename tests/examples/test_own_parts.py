"""Parts of one's own: each is what it says it is, and all of them together train by the YAMLs beside them."""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

from noising.cli.calls import composed
from noising.cli.overrides import composer, each_choice_once
from noising.config.choices import conf_dir
from noising.diffusion.schedules import RectifiedFlow
from tests.helpers import ROOT, Command

OWN = ROOT / "examples" / "own_parts"
COMMANDS = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", (OWN / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("noising")
]


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the example."""
    monkeypatch.syspath_prepend(str(OWN))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield importlib.import_module("mine")
    sys.modules.pop("mine", None)


def test_schedule_is_rectified_flows_without_margins(mine: ModuleType) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(mine.Logistic(scale=2, margin=0).log_snr(t), RectifiedFlow().log_snr(t))
    ends = mine.Logistic(mean=1, scale=1.5, margin=0.001).log_snr(torch.tensor([0, 0.5, 1], dtype=torch.float64))
    torch.testing.assert_close(ends, 1 + 1.5 * math.log(999) * torch.tensor([1, 0, -1], dtype=torch.float64))


def test_network_sees_the_whole_image_and_the_level(mine: ModuleType) -> None:
    network = mine.Convolutions(channels=1, out_channels=2)
    x = torch.zeros(1, 1, 16, 16, requires_grad=True)
    output = network(x, torch.tensor([500.0]))
    assert output.shape == (1, 2, 16, 16)
    (gradient,) = torch.autograd.grad(output[0, 0, 8, 8], x)
    assert (gradient != 0).all()
    assert not torch.equal(output, network(x, torch.tensor([100.0])))


def test_shapes_have_their_area(mine: ModuleType) -> None:
    shapes = mine.Shapes(images=300)
    assert len(shapes) == 300
    for index in range(300):
        image, label = shapes[index]
        assert torch.equal(image, shapes[index][0])
        radius = 2 + 3 * float(torch.rand(1, generator=torch.Generator().manual_seed(index)))
        area = (math.pi * radius**2, (2 * radius) ** 2, 2 * math.pi * radius * 2)[label]
        assert float(image.double().sum() / 255) == pytest.approx(area, rel=0.12)


def test_metric_is_the_shift_of_brightness(mine: ModuleType) -> None:
    metric = mine.BrightnessDistance()
    images = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    for batch in images.split(30):
        metric.update(batch, real=True)
        metric.update(batch + 7, real=False)
    assert float(metric.compute()) == pytest.approx(7)


def test_all_of_them_train(tmp_path: Path, noising: Command, mine: ModuleType) -> None:
    shutil.copytree(OWN / "conf", tmp_path / "conf")
    shutil.copy(OWN / "mine.py", tmp_path)
    own = ["schedule=mine", "model=mine", "data=mine", "metrics=mine", "model.width=8", "data.dataset.images=100"]
    steps = ["trainer.max_steps=4", "trainer.val_check_interval=4", "sampler=ddim", "sampler.steps=2"]
    bound = ["bound=stratified", "bound.times=4", "validation_bound.times=4", "hydra.run.dir=run"]
    outcome = noising("train", "--config-dir", "conf", *own, *steps, *bound, "trainer.accelerator=cpu")
    assert outcome.code == 0, outcome.err
    assert "Convolutions of" in outcome.out
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert config.schedule._target_ == "mine.Logistic"
    assert config.data.dataset._target_ == "mine.Shapes"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert 0 < summary["test/brightness_distance"] < 255


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_compose(command: str, mine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(OWN)
    program, name, *words = shlex.split(command)
    assert program == "noising"
    folder = "conf" if "--config-dir" in words else None
    options = [word for word in words if "=" in word and not word.startswith("resume=")]
    if "-m" not in words:
        assert composed(name, options, folder)
        return
    with composer(name, str(conf_dir()), folder) as composing:
        for job in each_choice_once(composing.parse(options)):
            composing.check(composing.compose(job), job)


def test_the_page_has_its_commands() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} == {"train", "verify", "evaluate", "sample"}
