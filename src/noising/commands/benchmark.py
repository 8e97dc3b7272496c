"""`benchmark`: how much a method saves against what it replaces, as ratios measured in one run."""

import os
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from omegaconf import DictConfig

from noising.commands.devices import find_device
from noising.commands.loggers import open_results
from noising.commands.tables import print_files, print_table
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.diffusion.drawing import in_evaluation
from noising.errors import ConfigError
from noising.plots.ratios import RatioRange, draw
from noising.runs.declarations import Declaration
from noising.runs.folder import Run
from noising.runs.status import run_status
from noising.trained import TrainedRun, load


class Ratio(NamedTuple):
    """One comparison, with the card of what it rests on."""

    key: str
    what: str
    baseline: str
    ours: str
    ratio: float
    card: dict[str, Any]


def now(device: torch.device) -> float:
    """The time, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def device_name(device: torch.device) -> str:
    """The name of a device, for a card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def accelerator(device: torch.device) -> str:
    """Lightning's word for a type of device."""
    return "gpu" if device.type == "cuda" else device.type


class Benchmark(ABC):
    """A method against what it replaces."""

    columns: ClassVar[tuple[str, str, str, str]]
    """Headings: the quantity and its unit, the baseline, ours, the ratio."""
    needs_checkpoint: ClassVar[bool] = True

    @abstractmethod
    def run(self, trained: TrainedRun | None, device: torch.device, batch_size: int) -> list[Ratio]:
        """Measure both in this process; trained is None if the benchmark needs no checkpoint."""


def benchmark(cfg: DictConfig, run_dir: Path) -> None:
    """Print the ratios and leave them with their cards in summary.json."""
    method = make(cfg.benchmark, "benchmark", Benchmark)
    if method.needs_checkpoint and cfg.checkpoint is None:
        raise ConfigError("checkpoint has no value: add checkpoint=RUN, a run's folder or a checkpoint file")
    device = find_device(cfg.device)
    trained, run = load(cfg.checkpoint) if method.needs_checkpoint else None, Run(run_dir)
    results = open_results(run, cfg, "benchmark")
    with run_status(results, without_secrets(cfg)):
        with torch.no_grad(), in_evaluation(trained.denoiser.to(device)) if trained else nullcontext():
            ratios = method.run(trained, device, cfg.batch_size)
        source = trained.source if trained else {}
        cards = {f"benchmark/{ratio.key}": {**ratio.card, **source} for ratio in ratios}
        results.declare({ratio.key: Declaration(ratio.what, method.columns[3], "higher") for ratio in ratios})
        results.write_all({f"benchmark/{ratio.key}": ratio.ratio for ratio in ratios}, 0, cards)
    title = f"{trained.data.name}, {os.path.relpath(trained.path)}" if trained else str(device)
    figure = run.figures / "ratios.png"
    ranges = [
        RatioRange(ratio.what, ratio.ratio, ratio.card["least"], ratio.card["greatest"])
        for ratio in ratios
        if "least" in ratio.card
    ]
    if ranges:
        with run.writing(figure):
            draw(figure, ranges, method.columns[3])
        results.write_image("ratios", figure, 0, title)
    print_table(title, method.columns, [(what, base, ours, f"{ratio:.3g}") for _, what, base, ours, ratio, _ in ratios])
    print_files(*([figure] if ranges else []), run.summary_file)
