"""The table of what was measured of samples, with errors and yardsticks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from noising.jobs.numbers import number
from noising.training.sample_quality import measured

__all__ = ["print_quality"]

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
