"""Pictures of the `latents` command: interpolation between noises, and images to their own noise and back."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from noising.plots.grids import GAP, label_plainly, save_figure, tile_centres, tiled

_SHOWN = 16  # images side by side in the picture of reconstructions


def interpolation_rows(file: Path, images: Tensor, names: Sequence[str], title: str) -> None:
    """Draw (pairs, columns, C, H, W) uint8, a pair a row, its two ends framed."""
    pairs, columns = images.shape[:2]
    figure, axes = tiled(images, title)
    side = images.shape[-1] + GAP
    for row in range(pairs):
        for column in (0, columns - 1):
            corner = (column * side + GAP / 2, row * side + GAP / 2)
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="tab:orange", linewidth=2))
    fractions = ["first end", *(f"{i}/{columns - 1}" for i in range(1, columns - 1)), "other end"]
    axes.set_xticks(tile_centres(columns, images), fractions, fontsize=8)
    axes.set_yticks(tile_centres(pairs, images), names, fontsize=9)
    axes.set_xlabel("position on the arc between the two latents")
    save_figure(figure, file)


def reconstruction_rows(
    file: Path, images: Tensor, drawn: Sequence[Tensor], steps: Sequence[int], rmse: Sequence[float], title: str
) -> None:
    """Draw the first images (B, C, H, W) uint8 above their reconstructions, (B, C, H, W) for each number of steps.

    rmse: error over all images for each number of steps, in 8-bit grey levels.
    """
    rows = [row[:_SHOWN] for row in (images, *drawn)]
    figure, axes = tiled(rows, title)
    names = [f"{count} steps\nRMSE {error:.1f}" for count, error in zip(steps, rmse, strict=True)]
    axes.set_yticks(tile_centres(len(rows), images), ["test images", *names], fontsize=9)
    axes.set_xticks([])
    axes.axhline(images.shape[-1] + 1.5 * GAP, color="tab:orange", linewidth=2)
    save_figure(figure, file)


def reconstruction_error(file: Path, steps: Sequence[int], rmse: Tensor, grey_level: float, title: str) -> None:
    """Plot rmse (steps, B) of each image, and over all, against the number of steps, in 8-bit grey levels.

    grey_level: distance between two neighbouring levels of the data.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    of_all = rmse.square().mean(dim=1).sqrt().tolist()
    each = axes.plot(steps, rmse, color="0.75", linewidth=0.8)
    each[0].set_label("each image")
    axes.plot(steps, of_all, marker="o", color="tab:blue", label="all images")
    middle = len(steps) // 2
    first_order = [of_all[middle] * steps[middle] / count for count in steps]
    axes.plot(steps, first_order, "--", color="tab:orange", label="first order: ∝ 1/steps")
    axes.axhline(grey_level, color="0.4", linestyle=":", label="one grey level of the data")
    axes.set(xscale="log", yscale="log", xlabel="DDIM steps in each direction")
    axes.set_ylabel("RMSE of the reconstruction  [8-bit grey levels]")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    label_plainly(axes.yaxis)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save_figure(figure, file)
