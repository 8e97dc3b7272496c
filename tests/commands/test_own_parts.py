"""Parts of one's own, in a file of an otherwise empty folder: trained, measured, drawn from and gone on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from noising.runs.folder import Run
from tests.helpers import SMALL, Command, read_table, run_command, same

NAME = "parts_of_ones_own"
TEXT = """
import os

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from torchmetrics import Metric

import noising as nz

class Net(nn.Module):
    def __init__(self, channels, out_channels, num_classes=None, depth=1):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels + 1, out_channels, 3, padding=1) for _ in range(depth))
        self.kinds = nn.Embedding(num_classes or 1, 1)

    def forward(self, x, t, y=None):
        level = (t / 1000)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        if y is not None:
            level = level + self.kinds(y)[:, :, None, None]
        for layer in self.layers:
            x = layer(torch.cat([x, level], 1))
        return (x, None)

class Few(Net):
    def __init__(self, channels, out_channels, classes):
        super().__init__(channels, out_channels, classes)

class Dicts(Net):
    def forward(self, x, t):
        return {"x": x}

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise KeyError("width")

class Bars(Dataset):
    def __init__(self, count=200, side=8):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.zeros(1, self.side, self.side)
        image[0, index // 2 % self.side] = 1
        return (image, 0) if index % 2 else (image.mT, 1)

class Curve(nz.Schedule):
    def __init__(self, end=-9.0):
        super().__init__()
        self.end = end

    def log_snr(self, t):
        return 9.0 + (self.end - 9.0) * t

class Absolute(nz.Objective):
    def forward(self, denoiser, x, t, noise, **condition):
        level = denoiser.schedule(t)
        found = denoiser.predict(level.perturb(x, noise), level, **condition)
        return {"loss": (found.noise - noise).abs().flatten(1).mean(dim=1)}

class Euler(nz.Sampler):
    def path(self, denoiser, noise, class_label=None):
        chain = self.chain(denoiser.schedule)
        x_t = denoiser.schedule.prior_std * noise()
        for i in range(len(chain), 0, -1):
            found = denoiser.at(x_t, chain[i].later, self.clip, class_label)
            x_t = chain[i].earlier.perturb(found.x, found.noise)
            yield nz.PathPoint(x_t, found.x)

class Brightness(Metric):
    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, images):
        self.total += images.double().mean() * len(images)
        self.images += len(images)

    def compute(self):
        return self.total / self.images

class Watch(Callback):
    def __init__(self, results):
        self.results = results

    def on_train_end(self, trainer, pl_module):
        self.results.write("train/steps_seen", float(trainer.global_step), trainer.global_step)

class Dies(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *given):
        if trainer.global_step == self.step and "DIES" in os.environ:
            raise RuntimeError("killed")

class Lion(Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    p.sub_(group["lr"] * (one * average + (1 - one) * p.grad).sign())
                    average.mul_(two).add_(p.grad, alpha=1 - two)
        return loss

class Deaf(Lion):
    def step(self, closure=None):
        return super().step()

def decay(step, max_steps, power=2.0):
    return (1 - step / max_steps) ** power

def falls_below(step):
    return 1.0 - step / 10
"""

PLAIN = [word for word in SMALL if word.partition(".")[0] not in ("model", "sampler", "callbacks", "~metrics")]
FEW = [
    *PLAIN,
    "callbacks.samples.count=4",
    "trainer.max_steps=6",
    "trainer.val_check_interval=6",
    "trainer.log_every_n_steps=1",
    "checkpoint_every_n_steps=3",
]
DIES = f"+callbacks.dies={{_target_: {NAME}.Dies, step: 4}}"
BARS = [f"data._target_={NAME}.Bars", "data.count=100", "data.batch_size=16"]
ALL = [
    f"model._target_={NAME}.Net",
    "model.depth=2",
    *BARS,
    "label_dropout=0.1",
    f"schedule._target_={NAME}.Curve",
    "schedule.end=-8",
    f"objective._target_={NAME}.Absolute",
    f"sampler._target_={NAME}.Euler",
    "sampler.steps=4",
    f"metrics._target_={NAME}.Brightness",
    f"+callbacks.watch={{_target_: {NAME}.Watch}}",
    DIES,
    f"optimizer._target_={NAME}.Lion",
    "optimizer.lr=0.01",
    f"lr_schedule._target_={NAME}.decay",
    "lr_schedule.power=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with nothing but the file of parts."""
    place = tmp_path_factory.mktemp("own")
    (place / f"{NAME}.py").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        yield place
    sys.modules.pop(NAME, None)


@pytest.fixture(scope="module")
def own(folder: Path) -> Command:
    """own("train", *overrides) in that folder."""
    return partial(lambda place, name, *words: run_command(name, place, *words), folder)


@pytest.fixture(scope="module")
def run(own: Command, folder: Path) -> Run:
    """A run of which every part is one's own."""
    done = own("train", *FEW, *ALL, "hydra.run.dir=run")
    assert done.code == 0, done.err
    return Run(folder / "run")


def test_every_part_was_trained(run: Run) -> None:
    config, summary = run.config, run.summary
    assert config["model"] == {"_target_": f"{NAME}.Net", "depth": 2}
    assert config["data"]["dataset"] == {"_target_": f"{NAME}.Bars", "count": 100}
    assert config["optimizer"] == {"_target_": f"{NAME}.Lion", "lr": 0.01}
    rates = [float(row["train/lr"]) for row in read_table(run.path / "metrics.csv") if row["train/lr"]]
    assert rates == pytest.approx([0.01 * (1 - step / 6) for step in range(1, 7)], abs=1e-12)
    assert summary["train/steps_seen"] == 6
    assert summary["test/brightness_baseline"] == pytest.approx(255 / 8, rel=1e-6)
    assert 0 <= summary["test/brightness"] <= 255
    prior = 0.5 / np.log(2) * (1 / (1 + np.exp(8))) * 2  # of the schedule's end: bits/dim at most
    assert 0 < summary["test/prior"] < prior
    state = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    assert state["denoiser.model.network.layers.1.weight"].shape == (1, 2, 3, 3)
    assert state["denoiser.model.network.kinds.weight"].shape == (3, 1)


def test_it_is_evaluated_drawn_from_and_gone_on_with(run: Run, own: Command, folder: Path) -> None:
    bound = own("evaluate", f"checkpoint={run.path}", "bound=stratified", "bound.times=8", "hydra.run.dir=bound")
    assert bound.code == 0, bound.err
    assert Run(folder / "bound").summary["test/bound"] == pytest.approx(run.summary["test/bound"], rel=1e-6)
    metric = [f"metrics._target_={NAME}.Brightness", "sampler=ddim", "sampler.steps=4"]
    quality = own("evaluate", f"checkpoint={run.path}", *metric, "hydra.run.dir=quality")
    assert quality.code == 0, quality.err
    assert "test/brightness" in Run(folder / "quality").summary
    steps = ("sampler.steps=4", "grid=uniform", "n=6")
    for sampler, place in ((f"sampler._target_={NAME}.Euler", "euler"), ("sampler=ddim", "ddim")):
        drawn = own("sample", f"checkpoint={run.path}", sampler, *steps, f"hydra.run.dir={place}")
        assert drawn.code == 0, drawn.err
    # Euler's step is DDIM's
    euler, ddim = (np.load(folder / place / "samples.npz")["arr_0"].astype(int) for place in ("euler", "ddim"))
    assert euler.shape == (6, 8, 8, 1)
    assert abs(euler - ddim).max() <= 1


MUON = [
    "optimizer._target_=torch.optim.Muon",
    "optimizer.lr=0.02",
    "lr_schedule._target_=torch.optim.lr_scheduler.OneCycleLR",
    "lr_schedule.max_lr=0.02",
    "lr_schedule.cycle_momentum=false",
]
SGD = [
    "optimizer._target_=torch.optim.SGD",
    "optimizer.lr=0.1",
    "optimizer.momentum=0.9",
    "lr_schedule._target_=torch.optim.lr_scheduler.StepLR",
    "lr_schedule.step_size=2",
]


def require_same_after_a_kill(
    own: Command, whole: Run, killed: Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill a training at its fourth step, go on from its third, and require the state of one that was not killed."""
    monkeypatch.setenv("DIES", "1")
    dead = own("train", *words, f"hydra.run.dir={killed.path}")
    assert (dead.code, "RuntimeError: killed" in dead.err) == (1, True), dead.err
    monkeypatch.delenv("DIES")
    assert torch.load(killed.last_checkpoint, weights_only=True)["global_step"] == 3
    resumed = own("train", f"resume={killed.path}")
    assert resumed.code == 0, resumed.err
    one, other = (torch.load(each.last_checkpoint, weights_only=True) for each in (killed, whole))
    for entry in ("state_dict", "optimizer_states", "lr_schedulers", "ema"):
        same(one[entry], other[entry], entry)
    longer = own("train", f"resume={killed.path}", "trainer.max_steps=8")
    assert longer.code == 0, longer.err
    assert torch.load(killed.last_checkpoint, weights_only=True)["global_step"] == 8


def test_a_killed_run_goes_on_to_the_last_bit(
    run: Run, own: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_same_after_a_kill(own, run, Run(folder / "killed"), [*FEW, *ALL], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [MUON, SGD], ids=["muon, one cycle", "sgd, steps"])
def test_a_killed_run_of_torchs_parts_goes_on_to_the_last_bit(
    parts: list[str], own: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*FEW, f"model._target_={NAME}.Net", *BARS, *parts, DIES, "~metrics"]
    done = own("train", *words, f"hydra.run.dir={tmp_path}/whole")
    assert done.code == 0, done.err
    require_same_after_a_kill(own, Run(tmp_path / "whole"), Run(tmp_path / "killed"), words, monkeypatch)


UNET = [
    "model._target_=diffusers.UNet2DModel",
    "model.block_out_channels=[8,8]",
    "model.down_block_types=[DownBlock2D,DownBlock2D]",
    "model.up_block_types=[UpBlock2D,UpBlock2D]",
    "model.norm_num_groups=4",
    "model.layers_per_block=1",
]
FAKE = ["data._target_=torchvision.datasets.FakeData", "data.size=40", "data.image_size=[1,8,8]", "data.batch_size=8"]


def test_classes_of_packages_are_named_by_yaml_alone_and_allowed_by_name(noising: Command, tmp_path: Path) -> None:
    few = [*PLAIN, "~metrics", "callbacks.samples=null", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    done = noising("train", *few, *UNET, *FAKE, *MUON, "label_dropout=0.2", "hydra.run.dir=run")
    assert done.code == 0, done.err
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert weights["denoiser.model.network.class_embedding.weight"].shape[0] == 11  # 10, and none
    refused = noising("sample", "checkpoint=run", "n=2")
    line = "error: checkpoint=run: its config names torchvision.datasets.FakeData, which is not part of noising: if "
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert refused.err.startswith(f"{line}you trust it, add allow=torchvision"), refused.err
    refused = noising("sample", "checkpoint=run", "n=2", "allow=torchvision")
    assert "its config names diffusers.UNet2DModel" in refused.err
    allow = "allow=diffusers,torchvision"
    drawn = noising("sample", "checkpoint=run", "n=2", "sampler.steps=2", allow, "hydra.run.dir=drawn")
    assert drawn.code == 0, drawn.err
    assert noising("train", "resume=run", "trainer.max_steps=3").code == 2
    more = noising("train", "resume=run", "trainer.max_steps=3", allow)  # a cycle of two steps has no third
    assert more.code == 0, more.err
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model._target_={}.Dicts", "model: Dicts cannot be used: it returns dict of x: expected a tensor (B, C, "),
        ("model._target_={}.Broken", "model: Broken raised KeyError: 'width' ({}.py:"),
        ("model._target_={}.Few label_dropout=0.1", "model: Few cannot be used: IndexError: index out of range in "),
        ("data._target_={}.Bars data.sid=4", "data.dataset.sid: no such option; did you mean data.dataset.side?"),
        ("data=torch_dataset data.dataset=null", "data.dataset: NoneType has no items by index"),
        ("optimizer._target_={}.Lion", "optimizer: Lion.__init__() missing 1 required positional argument: 'lr'"),
        ("optimizer._target_={}.Deaf optimizer.lr=1", "optimizer: Deaf.step does not call its closure, which "),
        ("lr_schedule._target_={}.falls_below", "lr_schedule: the factor of step 20 is -1.0: a number from 0 is "),
        ("lr_schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "lr_schedule: ReduceLROnPlateau depends "),
        (
            "lr_schedule._target_=torch.optim.lr_scheduler.OneCycleLR lr_schedule.max_lr=1 lr_schedule.total_steps=19",
            "lr_schedule: Tried to step 20 times. The specified number of total steps is 19",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_option(words: str, line: str, own: Command, folder: Path) -> None:
    done = own("train", *PLAIN, "~metrics", *words.replace("{}", NAME).split(), "hydra.run.dir=none")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert done.err.startswith(f"error: {line}".replace("{}", NAME)), done.err
    assert not (folder / "none").exists()
