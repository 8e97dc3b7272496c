"""`benchmark`: what a method saves, as ratios in one run, on any checkpoint."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from noising.configuration import make, require_whole
from noising.jobs.devices import find_device
from noising.jobs.summary import recording
from noising.trained import TrainedRun, load
from noising.training.run import Run
from noising.training.sampling import in_evaluation

__all__ = ["Benchmark", "Ratio", "benchmark"]


class Ratio(NamedTuple):
    """One comparison, and what it rests on."""

    key: str
    what: str
    baseline: str
    ours: str
    ratio: float
    card: dict[str, Any]


class Benchmark(ABC):
    """A method against what it replaces."""

    @abstractmethod
    def run(self, trained: TrainedRun, device: torch.device, batch_size: int) -> list[Ratio]:
        """Measure both, in this process."""


def benchmark(cfg: DictConfig, run_dir: Path) -> None:
    """Print the ratios, and leave them with their cards in summary.json."""
    require_whole(cfg, "batch_size", 1)
    method: Benchmark = make(cfg.benchmark, "benchmark")
    device = find_device(cfg.device)
    trained, run = load(cfg.checkpoint), Run(run_dir)
    with recording(run, OmegaConf.to_container(cfg, resolve=True)):
        with in_evaluation(trained.denoiser.to(device)):
            ratios = method.run(trained, device, cfg.batch_size)
        cards = {f"benchmark/{ratio.key}": {**ratio.card, **trained.source} for ratio in ratios}
        run.record({f"benchmark/{ratio.key}": ratio.ratio for ratio in ratios}, cards)
    view = Table(title=f"{trained.data.name}, {os.path.relpath(trained.path)}", title_justify="left")
    for column in ("network evaluations", "all terms", "adaptive", "times fewer"):
        view.add_column(column, justify="left" if column == "network evaluations" else "right")
    for ratio in ratios:
        view.add_row(ratio.what, ratio.baseline, ratio.ours, f"{ratio.ratio:.0f}")
    console = Console(soft_wrap=True)
    console.print(view)
    console.print(os.path.relpath(run.summary_file), highlight=False)
