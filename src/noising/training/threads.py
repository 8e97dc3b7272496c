"""The number of threads that a training on a CPU computes with: no more than there are free cores when it begins.

Two threads that share a core wait for each other at every operation: with one of two cores busy, two are 3.7 times
slower than one. Sums depend on the number, so that it is chosen once and stored with the run.
"""

import os
import time
from pathlib import Path

import torch
from lightning.pytorch import Trainer

_STAT = Path("/proc/stat")
_IDLE = (4, 5)  # the columns of a core's line that count its idle time: idle, and idle while a disk is waited for


def use_threads(trainer: Trainer, option: int | None, stored: int | None) -> int:
    """Set and return the number of threads of each process of a training.

    option: of the command line; stored: of the training that is continued, if there are as many cores. Else it is that
    of OMP_NUM_THREADS, or of the free cores. Several processes share the cores evenly, as Lightning sets them.
    """
    chosen = option or (stored if stored is not None and 1 <= stored <= (os.cpu_count() or 1) else None)
    if chosen is None and "OMP_NUM_THREADS" not in os.environ and trainer.num_devices == 1 and _on_cpu(trainer):
        chosen = min(torch.get_num_threads(), free_cores())
    if chosen is not None:
        torch.set_num_threads(chosen)
        if trainer.num_devices > 1:  # read by the processes that the Trainer will start, and by itself
            os.environ["OMP_NUM_THREADS"] = str(chosen)
    return torch.get_num_threads()


def _on_cpu(trainer: Trainer) -> bool:
    return trainer.strategy.root_device.type == "cpu"


def free_cores(seconds: float = 0.1) -> int:
    """Cores of this process's affinity that others leave idle, at least 1; all of them where the system does not tell.

    Load averages would not do: they are of the last minute, and count what waits.
    """
    if not _STAT.exists():
        return os.cpu_count() or 1
    before = _times()
    time.sleep(seconds)
    idle = total = 0.0
    for core, times in _times().items():
        passed = [now - then for now, then in zip(times, before[core], strict=True)]
        total += sum(passed)
        idle += sum(passed[column - 1] for column in _IDLE)
    cores = len(before)
    return max(1, round(cores * idle / total)) if total else cores


def _times() -> dict[int, list[int]]:
    """Clock ticks that each core of this process's affinity has spent in each state."""
    lines = (line.split() for line in _STAT.read_text(encoding="ascii").splitlines() if line.startswith("cpu"))
    cores = {int(name[3:]): [int(value) for value in values] for name, *values in lines if name != "cpu"}
    return {core: times for core, times in cores.items() if core in os.sched_getaffinity(0)}
