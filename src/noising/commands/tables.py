"""How a job begins and ends: its status in the run's folder, and the table printed last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from noising.data.image_data import SPLITS, ImageData
from noising.metrics.quality import measured
from noising.runs.folder import Run
from noising.training.module import DiffusionModule

__all__ = ["describe", "evaluations_bar", "number", "print_quality", "print_summary"]


_ROWS = (
    ("bound", "bound on -log p(x)"),
    ("prior", "  prior L_T"),
    ("steps", "  steps, sum of L_t"),
    ("decoder", "  decoder L_0"),
    ("decoder_floor", "    of it, no network could save"),
    ("histogram_baseline", "baseline: pixel histograms"),
    ("uniform_baseline", "baseline: uniform levels"),
)


def describe(module: DiffusionModule, data: ImageData, cfg: DictConfig, run: Run) -> str:
    """What is about to be trained, and where it goes."""
    millions = sum(p.numel() for p in module.denoiser.parameters()) / 1e6
    size = f"{data.resolution}x{data.resolution}x{data.channels}"
    return (
        f"{os.path.relpath(run.path)}: {len(data.train.pixels)} images of {data.name} ({size}), "
        f"{type(module.denoiser.model).__name__} of {millions:.2f}M parameters, "
        f"{cfg.trainer.max_steps} steps of {data.batch_size} images"
    )


def print_summary(run: Run) -> None:
    """The numbers with their errors, and where everything lies."""
    summary = run.summary
    console = Console(soft_wrap=True)
    for split in SPLITS:
        if f"{split}/bound" in summary:
            _print_bound(console, summary, split)
    _print_quality(console, summary)
    if skipped := summary.get("train/skipped_steps"):
        console.print(f"steps left out, since their gradients were not finite: {skipped}")
    if "train/images_per_second" in summary:
        console.print(f"trained at {summary['train/images_per_second']:.0f} images/s")
    console.print()
    for path in (
        run.samples_image,
        run.neighbours_image,
        run.reverse_process,
        run.bound_by_step_figure,
        run.bound_by_log_snr_figure,
        run.rate_distortion_figure,
        run.learning_curves,
        run.last_checkpoint,
        run.summary_file,
    ):
        if path.exists():
            console.print(os.path.relpath(path), highlight=False)


def _print_quality(console: Console, summary: dict[str, Any]) -> None:
    """Of the samples, where they were measured: what has the card of one is of the samples."""
    cards = {name: card for name, card in summary.get("cards", {}).items() if "samples" in card}
    numbers = {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith(tuple(cards))}
    if cards:
        print_quality(console, numbers, next(iter(cards.values())))


def _lost(summary: dict[str, Any], key: str) -> bool:
    """Whether nothing is left to see of the images' variance: it is what the Monte Carlo's leaves of the whole."""
    return bool(summary.get(f"{key}_mc_se")) and summary.get(f"{key}_image_se") == 0


def _print_bound(console: Console, summary: dict[str, Any], split: str) -> None:
    card = summary.get("cards", {}).get(f"{split}/bound", {})
    table = Table(title=f"{card.get('data', '')} {split} set, {card.get('images', 0)} images", title_justify="left")
    table.add_column("bits/dim")
    table.add_column("value", justify="right")
    table.add_column("± Monte Carlo", justify="right")
    table.add_column("± images", justify="right")
    for name, words in _ROWS:
        if f"{split}/{name}" in summary:
            key = f"{split}/{name}"
            errors = [summary.get(f"{key}_mc_se"), None if _lost(summary, key) else summary.get(f"{key}_image_se")]
            table.add_row(words, number(summary[key]), *("" if e is None else number(e) for e in errors))
    console.print(table)
    if _lost(summary, f"{split}/bound"):
        console.print(
            "how far the images differ is lost in the Monte Carlo error, and missing in the second interval: "
            "see it with more bound.times, or a smaller bound.stderr"
        )
    for words, ends in (
        ("of these images", ("low", "high")),
        ("of images like them", ("population_low", "population_high")),
    ):
        low, high = (summary.get(f"{split}/bound_{end}") for end in ends)
        if low is not None and high is not None:
            console.print(f"95% interval of the bound {words}: {low:.4f} to {high:.4f}")
    if card:
        console.print(
            f"{card['estimator']} estimate, {card['evaluations']:,} network evaluations (the full sum takes "
            f"{card['evaluations_of_the_full_sum']:,}), clip {card['clip']}, T = {card['timesteps']}, "
            f"EMA weights of step {card['step']}; ± is one standard error"
        )


_WORDS = {
    "fd": "Fréchet distance (FD)",
    "fid": "Fréchet Inception distance (FID)",
    "fd_dinov2": "Fréchet distance (FD-DINOv2)",
    "kd": "kernel distance",
    "kid": "kernel Inception distance (KID)",
    "kd_dinov2": "kernel distance",
    "precision": "precision: part that looks real",
    "recall": "recall: part of the real that is covered",
    "density": "density",
    "coverage": "coverage",
    "memorized": "part nearer to a training image than training images are",
    "inception_score": "Inception score",
    "class_accuracy": "part that shows the class asked for",
}


def print_quality(console: Console, numbers: Mapping[str, float], card: Mapping[str, Any]) -> None:
    """numbers: as SampleQuality.measure gives them; card: that of all."""
    sampler = card["sampler"]["_target_"].rpartition(".")[2]
    title = f"{card['repeats']} x {card['samples']} samples by {sampler}, {card['sampler']['steps']} steps"
    table = Table(title=title, title_justify="left")
    for column in ("", "value", "± Monte Carlo", "test images"):
        table.add_column(column, justify="right" if column else "left")
    for name in measured(numbers):
        rest = (numbers.get(f"{name}{suffix}") for suffix in ("_mc_se", "_baseline"))
        table.add_row(_WORDS[name], number(numbers[name]), *("" if value is None else number(value) for value in rest))
    console.print(table)
    reference = card["reference"]
    split = f" {reference['split']}" if "split" in reference else ""
    mirrored = ", each mirrored too" if reference.get("flips") else ""
    console.print(
        f"against {reference['images']}{split} images{mirrored} in the features of {card['features']}; "
        f"EMA weights of step {card['step']}; ± is one standard error"
    )


def number(value: float | None) -> str:
    """Four places, or two digits where those would be zeros."""
    if value is None:  # not finite
        return "nan"
    return f"{value:.4f}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


@contextmanager
def evaluations_bar(total: int) -> Iterator[Callable[[float], None]]:
    """Gives what is told how many more network evaluations were made."""
    columns = (TextColumn("network evaluations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda more: progress.advance(task, more)
