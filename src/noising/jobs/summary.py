"""How a job begins and ends: its status in the run's folder, and the table printed last."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from noising.configuration import ConfigError, UsageError
from noising.data.image_data import SPLITS, ImageData
from noising.jobs.numbers import number
from noising.jobs.quality_table import print_quality
from noising.training.loggers import close_loggers
from noising.training.module import DiffusionModule
from noising.training.preemption import Preempted
from noising.training.run import Run, changed_options

__all__ = ["describe", "print_summary", "recording", "require_same_options"]

log = logging.getLogger(__name__)

_INTERRUPTED = 130  # the shell's 128 + number of the signal

_ROWS = (
    ("bound", "bound on -log p(x)"),
    ("prior", "  prior L_T"),
    ("steps", "  steps, sum of L_t"),
    ("decoder", "  decoder L_0"),
    ("decoder_floor", "    of it, no network could save"),
    ("histogram_baseline", "baseline: pixel histograms"),
    ("uniform_baseline", "baseline: uniform levels"),
)


def require_same_options(run: Run, config: Mapping[str, Any], free: Sequence[str]) -> None:
    """Raise ConfigError if the folder holds a run of other options, but for those that change nothing it holds."""
    if not run.config_file.exists():
        return
    changed = changed_options(run.config, config, ("resume", *free))
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"resume: {os.path.relpath(run.path)} was started with other options: {changed[0]}{more}; "
            f"go on with {run.resuming} alone, or start anew without resume"
        )


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Within it no other process writes this run. The lock ends with the process, however that ends."""
    run.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{os.path.relpath(run.path)} is being written by another process: wait for it, or end it first"
        ) from None
    except (OSError, NotImplementedError):  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def recording(run: Run, config: Any, trainer: Trainer | None = None) -> Iterator[None]:
    """Within it the run is "running"; afterwards finished, interrupted (Ctrl-C, SIGTERM, SIGUSR1) or failed.

    Rank 0 writes.
    """
    writes = trainer is None or trainer.is_global_zero
    with _alone(run) if writes else nullcontext():
        yield from _recorded(run, config, trainer, writes)


def _recorded(run: Run, config: Any, trainer: Trainer | None, writes: bool) -> Iterator[None]:
    if writes:
        run.start(config)
    status = "failed"
    try:
        yield
        status = "finished"
    except Exception as error:
        _log_to_file(error)
        raise
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into exit 1
        status = "interrupted"
        raise SystemExit(stop.code if isinstance(stop, Preempted) else _INTERRUPTED) from None
    finally:
        close_loggers(trainer.loggers if trainer is not None else (), failed=status != "finished")
        if writes:
            run.finish(status)
            if status != "finished":
                path = os.path.relpath(run.path)
                hint = f"; go on with {run.resuming}" if status == "interrupted" and "resume" in (config or {}) else ""
                print(f"{status}: {path}{hint}", file=sys.stderr, flush=True)


def _log_to_file(error: Exception) -> None:
    """The console has it from whoever ends the process."""
    mistake = isinstance(error, UsageError)
    told = None if mistake else (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, str(error) if mistake else "failed", (), told)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


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
