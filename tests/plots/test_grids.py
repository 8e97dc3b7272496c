"""Grids show the images in reading order, a class a row, and side by side."""

from __future__ import annotations

import torch

from noising.plots.grids import image_grid, sample_grid, side_by_side


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
