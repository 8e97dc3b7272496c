"""Drawing leaves no trace, and the frames of a path are those of the images it ends in."""

from __future__ import annotations

import copy

import pytest
import torch

from noising.diffusion.drawing import PathFrames, class_labels_for, draw_images, frames, in_evaluation
from noising.diffusion.grids import uniform
from noising.diffusion.samplers import DDIM, Ancestral, Sampler
from noising.diffusion.schedules import Cosine
from noising.models.unet import UNet
from tests.diffusion.helpers import Crooked, denoiser_of

SHAPE = (1, 4, 4)


class Dropping(Crooked):
    """With a weight, so that it has a device, and dropout, so that it has a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x, noise_label, class_label=None):  # type: ignore[no-untyped-def]
        return self.scale * self.dropout(super().forward(x, noise_label, class_label))


def test_drawing_changes_nothing_and_is_changed_by_nothing() -> None:
    denoiser = denoiser_of(Dropping(), Cosine(100))
    denoiser.model.dropout.eval()
    modes = [module.training for module in denoiser.modules()]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = draw_images(denoiser, Ancestral(5, uniform), SHAPE, 0, [3, 4])
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in denoiser.modules()] == modes
    torch.manual_seed(2)
    assert torch.equal(draw_images(denoiser, Ancestral(5, uniform), SHAPE, 0, [3, 4]), one)
    assert not one.requires_grad
    assert one.abs().max() <= 1
    assert not torch.equal(draw_images(denoiser, Ancestral(5, uniform), SHAPE, 1, [3, 4]), one)


def test_unclipped_samples_are_kept_in_range() -> None:
    images = draw_images(denoiser_of(Dropping(), Cosine(100)), DDIM(3, uniform, clip=None), SHAPE, 0, range(20))
    assert images.abs().max() == 1
    watch = PathFrames(3, images=20)
    draw_images(denoiser_of(Dropping(), Cosine(100)), DDIM(3, uniform, clip=None), SHAPE, 0, range(20), on_step=watch)
    assert (watch.tensor.min(), watch.tensor.max()) == (-1, 1)


def test_autocast_does_not_reach_the_sampler() -> None:
    network = torch.nn.Linear(1, 1)
    with torch.autocast("cpu", torch.bfloat16), in_evaluation(network):
        assert network(torch.ones(1, 1)).dtype == torch.float32


def test_path_ends_in_the_images() -> None:
    denoiser = denoiser_of(Dropping(), Cosine(100))
    watch = PathFrames(10, images=2, count=4)
    images = draw_images(denoiser, Ancestral(10, uniform), SHAPE, 0, [5, 9, 2], on_step=watch)
    assert watch.tensor.shape == (4, 2, 2, *SHAPE)
    assert torch.equal(watch.tensor[-1, 0], images[:2])
    assert torch.equal(watch.tensor[-1, 1], images[:2])  # to clean, the step is x̂ itself
    assert not torch.equal(watch.tensor[0, 0], watch.tensor[0, 1])


def test_classes_are_asked_for_in_turn() -> None:
    asked = class_labels_for(range(8, 13), 10)
    assert asked is not None
    assert asked.tolist() == [8, 9, 0, 1, 2]
    only = class_labels_for([4, 7], 10, only=3)
    assert only is not None
    assert only.tolist() == [3, 3]
    assert class_labels_for(range(5), 0) is None


def test_frames_are_spread_and_hold_the_last() -> None:
    assert frames(10, 4) == [1, 4, 6, 9]
    assert frames(3, 40) == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", [DDIM(50, uniform), Ancestral(50, uniform)])
def test_a_gpus_images_are_a_cpus(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 proper: TF32 has 10 bits."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    network = UNet(channels=3, out_channels=3, resolution=16, width=32)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    on_host = denoiser_of(network, Cosine(1000))
    on_device = copy.deepcopy(on_host).cuda()
    images = [draw_images(denoiser, sampler, (3, 16, 16), 0, range(8)) for denoiser in (on_host, on_device)]
    assert images[0].std() > 0.1
    assert (images[0] - images[1].cpu()).abs().max() < 1e-3
