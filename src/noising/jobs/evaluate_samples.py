"""The samples of a checkpoint by one sampler: how good they are, how sure that is, and what they cost."""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from noising.configuration import require_whole
from noising.jobs.drawing import Drawing, Shards
from noising.jobs.summary import number, recording
from noising.trained import load
from noising.training.figures import sample_grid, save_png
from noising.training.references import References
from noising.training.run import Run
from noising.training.sample_quality import SampleQuality

__all__ = ["evaluate_samples"]

_ROWS = (("fd", "Fréchet distance (FD) to training images"), ("class_accuracy", "part that shows the class asked for"))


def evaluate_samples(cfg: DictConfig, run: Run) -> None:
    """Leave test/fd, and of a model with classes test/class_accuracy, with their errors and card in summary.json."""
    require_whole(cfg, "repeats", 1)
    if cfg.n is not None:
        require_whole(cfg, "n", 1)
    trained = load(cfg.checkpoint)
    quality = SampleQuality(References(trained.data), cfg.n, cfg.repeats)
    total = quality.count * cfg.repeats
    drawing = Drawing(OmegaConf.merge(cfg, {"n": total}), trained)  # type: ignore[arg-type]
    shards = Shards(run.path / "shards", drawing)
    shards.require_same()
    with recording(run, OmegaConf.to_container(cfg, resolve=True)):
        shards.fill()
        images = shards.read()
        numbers = quality.measure(images, drawing.asked(range(total)))
        numbers |= {
            "evaluations_per_image": drawing.evaluations,
            "seconds_per_image": shards.seconds / total,
        }
        card = {"samples": quality.count, "repeats": cfg.repeats, **drawing.card, **quality.card}
        save_png(run.samples_image, sample_grid(trained.data.to_8bit(images), drawing.classes))
        cards = {f"test/{name}": card for name, _ in _ROWS if name in numbers}
        run.record({f"test/{name}": value for name, value in numbers.items()}, cards)
        shards.remove()
    _print(run, numbers, card)


def _print(run: Run, numbers: dict[str, float], card: dict[str, Any]) -> None:
    sampler = card["sampler"]["_target_"].rpartition(".")[2]
    title = f"{card['repeats']} x {card['samples']} samples by {sampler}, {card['sampler']['steps']} steps"
    table = Table(title=title, title_justify="left")
    for column in ("", "value", "± Monte Carlo", "test images"):
        table.add_column(column, justify="right" if column else "left")
    for name, words in _ROWS:
        if name in numbers:
            error = numbers.get(f"{name}_mc_se")
            table.add_row(
                words,
                number(numbers[name]),
                "" if error is None else number(error),
                number(numbers[f"{name}_baseline"]),
            )
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(
        f"{card['features']}; {card['reference']}; {numbers['evaluations_per_image']:.0f} network evaluations and "
        f"{1000 * numbers['seconds_per_image']:.1f} ms a sample; EMA weights of step {card['step']}; "
        "± is one standard error"
    )
    console.print()
    console.print(os.path.relpath(run.summary_file), highlight=False)
