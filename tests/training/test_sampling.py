"""Drawing leaves no trace, and the frames of a path are those of the images it ends in."""

from __future__ import annotations

import torch

from noising.diffusion.drawing import PathFrames, class_labels_for, draw_images, frames, in_evaluation
from noising.diffusion.grids import uniform
from noising.diffusion.samplers import DDIM, Ancestral
from noising.diffusion.schedules import Cosine
from noising.plots.grids import image_grid, sample_grid, side_by_side
from tests.diffusion.conftest import Crooked, denoiser_of

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


def test_autocast_does_not_reach_the_sampler() -> None:
    denoiser = denoiser_of(torch.nn.Linear(1, 1), Cosine(100))
    with torch.autocast("cpu", torch.bfloat16), in_evaluation(denoiser):
        assert denoiser.model(torch.ones(1, 1)).dtype == torch.float32


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


def test_grid_shows_the_images_in_reading_order() -> None:
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 2) * 10
    grid = image_grid(images, gap=1, enlarge=False)
    assert grid.shape == (7, 10)  # two rows of three images of 2 pixels, and gaps
    assert grid[1::3, 1::3].tolist() == [[0, 10, 20], [30, 40, 128]]
    colours = image_grid(images.expand(5, 3, 2, 2), gap=0)
    assert colours.shape[2] == 3
    assert colours.shape[0] == 4 * round(512 / 6)


def test_grid_has_one_class_a_row() -> None:
    images = torch.arange(64, dtype=torch.uint8).reshape(64, 1, 1, 1).expand(64, 1, 2, 2)
    grid = sample_grid(images, classes=10)
    factor = grid.shape[0] // (10 * 3 + 1)  # 10 rows of 6 columns, enlarged by a whole factor
    gap, step = factor, 3 * factor
    seen = grid[gap::step, gap::step][:10, :6]
    assert (seen % 10 == torch.arange(10)[:, None].numpy()).all()
    assert seen[0].tolist() == [0, 10, 20, 30, 40, 50]
    assert sample_grid(images, classes=100).shape == image_grid(images).shape


def test_two_grids_stand_side_by_side() -> None:
    left, right = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.full((4, 1, 2, 2), 200, dtype=torch.uint8)
    both, one = side_by_side(left, right), image_grid(left)
    assert (both[:, : one.shape[1]] == one).all()
    assert (both[:, -one.shape[1] :] == image_grid(right)).all()
