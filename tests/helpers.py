"""Commands run in this process, a configuration that takes a second, a comparison bit by bit, and logs read back."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from noising.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
TRAIN = ROOT / "train.py"

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["noising.commands.train", "noising.metrics.quality"])  # once, not in every process

# A network and a schedule of work that take a second: for tests of everything around them.
SMALL = [
    "model.width=8",
    "model.heads=1",
    "model.groups=4",
    "model.multipliers=[1]",
    "trainer.max_steps=20",
    "trainer.val_check_interval=10",
    "trainer.log_every_n_steps=5",
    "trainer.accelerator=cpu",
    "checkpoint_every_n_steps=5",
    "callbacks.samples.every_n_steps=10",
    "callbacks.samples.count=9",
    "sampler.steps=4",
    "bound=stratified",
    "bound.times=8",
    "validation_bound.times=4",
    "~metrics",
]


AS_TRAINED = ["experiment=null", *SMALL]
"""Options of the run of the fixture `trained`."""

# what a choice cannot go without
COMPANIONS = {
    "learned_line": ["objective=continuous_bound", "decoder=softmax_gaussian"],
    "learned_log_snr": ["objective=continuous_bound"],
    "rectified_flow": ["parameterization=flow"],
    "zero_terminal_snr": ["parameterization=velocity"],
    "learned": ["objective=variational_bound"],
    "learned_range": ["objective=hybrid"],
    "hybrid": ["variance=learned_range"],
    "uncertainty_weighted": [
        *("model=edm2_64", "~model.heads", "~model.groups", "model.multipliers=[1,2]", "model.blocks=1"),
        *("model.attention=[4]", "model.head_width=8"),
    ],
}


class Outcome(NamedTuple):
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def run_command(name: str, folder: Path, *overrides: str) -> Outcome:
    """`noising NAME ...` in this process, in a folder."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    code: int | str | None = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(name, overrides)
    except SystemExit as end:
        code = end.code
    finally:
        os.chdir(before)
    return Outcome(int(code or 0), out.getvalue(), err.getvalue())


def run_script(script: str, folder: Path, *overrides: str) -> Outcome:
    """`python SCRIPT ...` in a process of its own, in a folder; the script by its path in the repository."""
    command = [sys.executable, str(ROOT / script), *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


_savefig = Figure.savefig


def _save_blank(figure: Figure, file: IO[bytes], *, dpi: float, format: str) -> None:
    width, height = (round(side * dpi) for side in figure.get_size_inches())
    Image.new("RGBA", (width, height), "white").save(file, format)


def leave_figures_blank() -> None:
    """Save white pictures of the figures' sizes from here on: laying out and drawing them is half of a small run."""
    Figure.savefig = _save_blank  # type: ignore[method-assign]


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw the figures within, for a test that looks at them."""
    Figure.savefig = _savefig  # type: ignore[method-assign]
    try:
        yield
    finally:
        leave_figures_blank()


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by its header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_images(folder: Path, images: Iterable[NDArray[np.uint8]]) -> Path:
    """A folder of 0.png, 1.png, ..."""
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def write_greys(folder: Path) -> Path:
    """A folder of 20 images of one grey each, without labels."""
    return write_images(folder, (np.full((8, 8, 3), 12 * number, np.uint8) for number in range(20)))


def composed(*overrides: str) -> DictConfig:
    """The config of `train` with a small network, and where no experiment is named, with none."""
    none = [] if any(override.startswith("experiment=") for override in overrides) else ["~experiment"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*none, "model.width=8", "++model.heads=1", "++model.groups=4", *overrides])


def same(one: Any, other: Any, place: str = "") -> None:
    """Require equality to the last bit in nested dicts, lists and tensors."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            same(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{place}[{number}]")
    else:
        assert one == other or (one != one and other != other), place  # nan is the same as nan


def _rank(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(work(rank), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def on_two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """The results of a function of the rank, called in two processes of one group: forks, which import nothing anew."""
    torch.multiprocessing.start_processes(_rank, (work, folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def public_names(module: ModuleType) -> set[str]:
    """The classes and functions that a module defines for others."""
    return {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    }


def wandb_records(folder: Path) -> list[Any]:
    """The records of a run's offline files, once wandb's own process, which writes behind our backs, has ended each."""
    for _ in range(100):
        files = [_records(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]
        if files and all(any(record.HasField("exit") for record in records) for records in files):
            return [record for records in files for record in records]
        time.sleep(0.1)
    raise AssertionError("wandb has not written the end of the run within 10 s")


def _records(file: Path) -> list[Any]:
    """The records of an offline file: a 7-byte header, then protobufs in 32 KiB blocks of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined,unused-ignore]

    data, at, found, part = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last of its parts
            found.append(Record.FromString(part))
            part = b""
    return found


def _merge(tree: dict[str, Any], items: Iterable[Any]) -> dict[str, Any]:
    """A tree with wandb's items in it: a key, or the keys from the root, and a value as JSON."""
    for item in items:
        *above, last = item.nested_key or [item.key]
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = json.loads(item.value_json)
    return tree


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's history, one a call of `log`."""
    return [_merge({}, record.history.item) for record in wandb_records(folder) if record.HasField("history")]


def wandb_summary(folder: Path) -> dict[str, Any]:
    """The summary that the history left."""
    tree: dict[str, Any] = {}
    for record in wandb_records(folder):
        if record.HasField("summary"):
            _merge(tree, record.summary.update)
    return tree


def wandb_config(folder: Path) -> dict[str, Any]:
    """The config of the run, with wandb's own entries under `_wandb`."""
    tree: dict[str, Any] = {}
    for record in wandb_records(folder):
        if record.HasField("run"):
            _merge(tree, record.run.config.update)
        if record.HasField("config"):
            _merge(tree, record.config.update)
    return tree


def wandb_run(folder: Path) -> Any:
    """The last record of the run itself: run_id, project, display_name, run_group, job_type, tags, notes, resume."""
    return [record.run for record in wandb_records(folder) if record.HasField("run")][-1]


def tensorboard_events(folder: Path) -> Any:
    """All events under tensorboard/ in a run's folder, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=everything).Reload()


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every scalar by its tag."""
    events = tensorboard_events(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def tensorboard_texts(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Steps and words of every text by its tag."""
    events = tensorboard_events(folder)
    return {
        tag.removesuffix("/text_summary"): [
            (event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }
