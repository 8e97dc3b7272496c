"""Ranks that end together: one that is left behind would hold its device and wait for ever."""

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from noising.errors import UsageError
from noising.runs.folder import Run

_VARIABLE = "NOISING_MAIN_PROCESS"
_POLL_SECONDS = 0.5


def end_with_main_process() -> None:
    """Make the ranks that Lightning starts end with the process that started them.

    In that process, leave its number in the environment; in the others, wait for it to end. Where a launcher starts all
    ranks (torchrun, Slurm), it also ends them.
    """
    main = os.environ.get(_VARIABLE)
    if main is None or os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_VARIABLE] = str(os.getpid())
    elif "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ:
        threading.Thread(target=_exit_after_main_process, daemon=True).start()


def main_process_ends(seconds: float) -> bool:
    """Wait for at most so many seconds, and say whether the process that started this one has ended."""
    until = time.monotonic() + seconds
    while str(os.getppid()) == os.environ.get(_VARIABLE):
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _exit_after_main_process() -> None:
    main_process_ends(math.inf)
    os._exit(1)


class RankError(UsageError):
    """Another process of the run has ended."""

    exit_code = 1


@contextmanager
def ending_with_other_ranks(run: Run) -> Iterator[None]:
    """Raise RankError where torch reports a connection that another rank has left."""
    try:
        yield
    except RuntimeError as error:
        # errors of NCCL and of the store have a class; those of gloo only name its source file
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
            raise RankError(
                f"another process of the run has ended, so all end: if nothing above says why, it was killed (out of "
                f"memory?); go on with {run.resuming}"
            ) from error
        raise
