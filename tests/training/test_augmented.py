"""Training on augmented images: by their place alone, with labels that the network sees then and never else."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.data.image_data import ImageData
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.drawing import draw_images
from noising.diffusion.objectives import Objective, Regression
from noising.errors import ConfigError
from noising.experiment import Experiment
from noising.training.checkpoints import load_checkpoint
from noising.training.module import DiffusionModule
from tests.helpers import SMALL, Command, composed, same

SONG = "model._target_=noising.models.song_unet.SongUNet"
AUGMENTED = ("augmentation=edm", SONG)
FEW = [
    *SMALL,
    *("trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.samples=null", "data.batch_size=180"),
    "bound.times=4",
]


class Listening(Objective):
    """Keeps what it is given."""

    def forward(self, denoiser: Any, x: Tensor, t: Tensor, noise: Tensor, **condition: Any) -> dict[str, Tensor]:
        self.x, self.condition = x, condition
        return {"loss": t.float()}


@pytest.fixture(scope="module")
def module(digits: ImageData) -> DiffusionModule:
    """One that augments every second image, say, in each way."""
    return Experiment(composed(*AUGMENTED, "augmentation.probability=0.5"), digits).module


def given(
    module: DiffusionModule,
    digits: ImageData,
    step: int = 3,
    micro: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> Listening:
    """What the objective of one micro-batch of the global batch of 48 is given."""
    module.objective = listening = Listening()
    trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=accumulate, optimizers=[]
    )
    module.trainer = trainer  # type: ignore[assignment]
    size = 48 // (world * accumulate)
    first = (micro * world + rank) * size
    images = digits.scale(digits.train.pixels[first : first + size])
    module.training_step({"image": images, "index": torch.arange(size)}, batch_idx=step * accumulate + micro)
    return listening


def test_images_do_not_depend_on_how_a_step_is_shared_out(module: DiffusionModule, digits: ImageData) -> None:
    whole = given(module, digits)
    labels = whole.condition["augmentation"]
    assert labels.shape == (48, 9)
    assert labels.any(1).sum() > 24
    for world, accumulate in ((1, 2), (2, 1), (2, 3)):
        places = [(micro, rank) for micro in range(accumulate) for rank in range(world)]
        parts = [given(module, digits, 3, micro, rank, world, accumulate) for micro, rank in places]
        torch.testing.assert_close(torch.cat([part.x for part in parts]), whole.x, atol=1e-5, rtol=0)
        together = torch.cat([part.condition["augmentation"] for part in parts])
        torch.testing.assert_close(together, labels, atol=1e-6, rtol=1e-6)


def test_a_step_is_a_function_of_its_number(module: DiffusionModule, digits: ImageData) -> None:
    """So a run that goes on after a kill sees what it would have seen."""
    one, other, again = (given(module, digits, step) for step in (3, 4, 3))
    assert torch.equal(one.x, again.x)
    same(one.condition, again.condition)
    assert not torch.equal(other.condition["augmentation"], one.condition["augmentation"])


def test_without_an_augmentation_nothing_is_said_of_one(module: DiffusionModule, digits: ImageData) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "augmentation", None)
        listening = given(module, digits)
    assert listening.condition.keys() == {"class_label"}
    assert torch.equal(listening.x, digits.scale(digits.train.pixels[:48]))


class Recording(nn.Module):
    """Keeps the augmentation of every call."""

    def __init__(self, heard: list[Tensor | None]) -> None:
        super().__init__()
        self.heard, self.weight = heard, nn.Parameter(torch.ones(()))

    def forward(
        self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        self.heard.append(augmentation)
        return self.weight * x


class AsInEDM(Recording):
    """The same under the name of EDM's own networks."""

    def forward(  # type: ignore[override]
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        self.heard.append(augment_labels)
        return self.weight * x


@pytest.mark.parametrize("kind", [Recording, AsInEDM])
def test_the_network_sees_the_labels_in_training_alone(kind: type[Recording], digits: ImageData) -> None:
    heard: list[Tensor | None] = []
    experiment = Experiment(composed("validation_bound.times=4", "timesteps=8", "sampler.steps=2"), digits)
    recipe, labels = experiment.recipe, torch.rand(4, 9)
    denoiser: Denoiser = recipe.denoiser(kind(heard))
    x, t = digits.scale(digits.train.pixels[:4]), torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
    noise = torch.ones_like(x)
    Regression()(denoiser, x, t, noise, class_label=None, augmentation=labels)
    denoiser(x, t, class_label=None, augmentation=labels)
    assert [one is labels for one in heard] == [True, True]
    heard.clear()
    with torch.no_grad():
        draw_images(denoiser, experiment.sampler, (1, 8, 8), 0, range(2))
        module = experiment.module
        module.validation.begin(denoiser, 4, lambda index: (x[index], None), lambda plan: plan)
        module.validation.update(x, torch.arange(4), None)
    assert len(heard) >= 3
    assert heard == [None] * len(heard)


def test_labels_that_are_zeros_are_none(module: DiffusionModule, digits: ImageData) -> None:
    """So an image of which nothing is said and one that is not augmented are one and the same to the network."""
    network = copy.deepcopy(module.denoiser.model).eval()
    assert network.augmentation_embedding.weight.shape[1] == 9
    x, label = digits.scale(digits.train.pixels[:2]), torch.tensor([0.1, 0.5])
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_()
        without, zeros = network(x, label), network(x, label, augmentation=torch.zeros(2, 9))
        ones = network(x, label, augmentation=torch.ones(2, 9))
    assert torch.equal(without, zeros)
    assert not torch.allclose(without, ones, rtol=0.1)


def test_a_network_is_made_for_the_labels_there_are(digits: ImageData) -> None:
    assert Experiment(composed(SONG), digits).denoiser.model.augmentation_embedding is None


@pytest.mark.parametrize("options", [(), (SONG, "+model.augmentation_labels=8")])
def test_a_network_that_takes_none_is_refused_before_training(options: tuple[str, ...], digits: ImageData) -> None:
    with pytest.raises(ConfigError) as raised:
        _ = Experiment(composed("augmentation=edm", *options), digits).module
    assert str(raised.value) == (
        f"augmentation: {'SongUNet' if options else 'UNet'} does not take its 9 labels: use a model that does, such as "
        "model=ddpmpp, or augmentation=null"
    )


def of_own_cards(run: Path) -> list[Any]:
    return [card["augmentation"] for card in json.loads((run / "summary.json").read_text())["cards"].values()]


def test_an_augmented_run_says_so(noising: Command, tmp_path: Path) -> None:
    assert (done := noising("train", *FEW, *AUGMENTED, "hydra.run.dir=run")).code == 0, done.err
    (card,) = of_own_cards(tmp_path / "run")
    assert (card["name"], card["probability"]) == ("GeometricAugmentation", 0.12)
    assert "bilinear" in card["warp"]


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, out_channels, augmentation_labels):
        super().__init__()
        self.layer = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.seen = nn.Linear(augmentation_labels, 1)

    def forward(self, x, noise_label, class_label=None, augmentation=None):
        return self.layer(x) + (0 if augmentation is None else self.seen(augmentation)[:, :, None, None])

class Deaf(nn.Module):
    def __init__(self, channels, out_channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x, noise_label):
        return self.layer(x)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file with networks of one's own in the folder of the test."""
    (tmp_path / "own_augmented.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_augmented", None)


@pytest.mark.usefixtures("own")
def test_a_network_of_ones_own_is_made_for_the_labels_or_refused(digits: ImageData) -> None:
    cfg = composed("augmentation=edm")
    cfg.model = {"_target_": "own_augmented.Net"}
    made = Experiment(cfg, digits).module
    assert made.denoiser.model.seen.weight.shape == (1, 9)
    cfg.model = {"_target_": "own_augmented.Deaf"}
    with pytest.raises(ConfigError) as raised:
        _ = Experiment(cfg, digits).module
    assert str(raised.value) == (
        "model: Deaf cannot be used: its forward takes no parameter augmentation: give it one, or use augmentation=null"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_an_augmented_run_that_goes_on_is_the_one_that_was_not_stopped(noising: Command, tmp_path: Path) -> None:
    """Two steps and then two more are bitwise the four; what is drawn from it says how it was augmented."""
    few = [option for option in FEW if not option.startswith("model.")]
    options = [*few, "augmentation=edm", "model._target_=own_augmented.Net", "lr_schedule=constant"]
    for words in ([*options, "trainer.max_steps=4", "hydra.run.dir=whole"], [*options, "hydra.run.dir=parts"]):
        assert (done := noising("train", *words)).code == 0, done.err
    assert (done := noising("train", "resume=parts", "trainer.max_steps=4")).code == 0, done.err
    whole, parts = (load_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "parts"))
    assert whole["global_step"] == 4
    for entry in ("state_dict", "ema", "optimizer_states"):
        same(whole[entry], parts[entry])
    done = noising("sample", "checkpoint=whole", "n=2", "sampler.steps=2", "hydra.run.dir=drawn")
    assert done.code == 0, done.err
    assert of_own_cards(tmp_path / "drawn") == of_own_cards(tmp_path / "whole")
