"""Sweeps: the checks before the first job, and the table and picture when the last has ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from noising.config.words import quoted
from noising.errors import UsageError, printable
from noising.runs.declarations import declaration, measurements
from noising.runs.sweep import columns, declarations, rows, write_sweep


class SweepTable(Callback):
    """Hydra callback: writes sweep.csv and prints it when the last job has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        write_sweep(folder)
        print_table(folder)


class SweepFigure(Callback):
    """Hydra callback: when the last job of a sweep has ended, draws quality.png if two samplers were measured."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from noising.plots.sweep import draw, measured  # here: it brings matplotlib and torch

        folder = Path(config.hydra.sweep.dir)
        table = measured(rows(folder))
        if len(table) > 1:
            draw(folder / "quality.png", table, declarations(folder))
            print(f"plotted in {printable(folder / 'quality.png')}")


_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"


def print_table(sweep: Path) -> None:
    """Print what differs between the jobs and what was measured on test images; sweep.csv has the rest."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from noising.commands.tables import cell, literal

    table = rows(sweep)
    if not table:
        return
    names = columns(table)
    overrides = names[: names.index("status")]
    differ = [name for name in overrides if len({row.get(name) for row in table}) > 1]
    numbers = [name for name in names if any(type(row.get(name)) in (int, float) for row in table)]
    declared = declarations(sweep)
    # errors stand beside their numbers, and baselines are the same for all
    tested = [n for n in measurements(numbers) if n.startswith("test/") and declaration(n, declared).shown]
    ended = [] if all(row["status"] == "finished" for row in table) else ["status"]
    shown = [*(differ or overrides), *ended, *(tested or numbers[:6])]
    view = Table(title=Text(printable(sweep), style="table.title"), title_justify="left")
    for name in shown:
        cells = [cell(row, name) for row in table]
        width = max(map(len, cells)) if name in numbers else None  # in a narrow terminal only headings are broken
        heading = name if name in overrides else name.replace("_", " ")
        view.add_column(
            literal(heading), justify="right" if name in numbers else "left", overflow="fold", min_width=width
        )
    for row in table:
        view.add_row(*(literal(cell(row, name)) for name in shown))
    Console().print(view)
    print(f"written to {printable(sweep / 'sweep.csv')}")


def presets(config: DictConfig) -> list[str]:
    """The overrides that the sweeper's own `params` add."""
    parameters = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    swept = parameters.get("params") or {} if isinstance(parameters, dict) else {}
    return [f"{key}={value}" for key, value in swept.items()]


def prepare_jobs(config: DictConfig, parsed: Sequence[Override]) -> None:
    """Write into the sweep's config what its sweeper composes each job from; the folder is settled.

    A job's folder is named by what is swept: not by the overrides that all jobs share.
    """
    task = [override.input_line for override in parsed if not override.is_hydra_override()]
    shared = [override.get_key_element().lstrip("+~") for override in parsed if not override.is_sweep_override()]
    words = [f"hydra.sweep.dir={quoted(str(config.hydra.sweep.dir))}"]
    if not any(override.key_or_group == _EXCLUDED for override in parsed):
        words.append(f"{_EXCLUDED}=[{','.join(['resume', *shared])}]")
    with open_dict(config.hydra):
        config.hydra.overrides.task = task
        config.hydra.overrides.hydra = [*config.hydra.overrides.hydra, *words]


def refuse_ddp_sweep(config: DictConfig) -> None:
    """Refuse a job of a sweep that would make Lightning start other processes by running the command line again.

    That command line is the whole sweep's: each process would run it all, in folders of its own, and with a sweeper
    that draws its values every rank would train with other ones, in silence.
    """
    if runs_program_again(config):
        raise UsageError(
            "a sweep cannot launch DDP subprocesses: add trainer.strategy=ddp_spawn (or run the jobs one by one)"
        )


def runs_program_again(config: DictConfig) -> bool:
    """Whether Lightning would start other processes by running this program again, with the words that it was given."""
    trainer = config.get("trainer")
    if not isinstance(trainer, DictConfig) or _processes(trainer) < 2:
        return False
    strategy = trainer.get("strategy", "auto")
    name = str(strategy.get("_target_", "") if isinstance(strategy, DictConfig) else strategy).lower()
    starts = strategy.get("start_method", "") if isinstance(strategy, DictConfig) else ""
    return not any(word in f"{name} {starts}" for word in ("spawn", "fork", "notebook"))


def _processes(trainer: DictConfig) -> int:
    """Number of processes that Lightning would train with."""
    nodes = int(trainer.get("num_nodes", 1) or 1)
    devices = trainer.get("devices", "auto")
    if OmegaConf.is_list(devices):
        return nodes * len(devices)
    text = str(devices)
    if "," in text:
        return nodes * len([part for part in text.split(",") if part.strip()])
    if text.isdigit():
        return nodes * int(text)
    if text not in ("auto", "-1") or trainer.get("accelerator", "auto") == "cpu":
        return nodes
    import torch  # "auto": all GPUs there are

    return nodes * max(1, torch.cuda.device_count())
