"""The other ranks of a run end with its first: one that is left behind would hold its device, and wait for ever."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["end_with_main_process"]

_VARIABLE = "NOISING_MAIN_PROCESS"
_SECONDS = 0.5


def end_with_main_process() -> None:
    """In the process that Lightning starts the other ranks from: let them know it. In those: watch it.

    Where a launcher starts all ranks (torchrun, Slurm), ending them is the launcher's.
    """
    main = os.environ.get(_VARIABLE)
    if main is None or os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_VARIABLE] = str(os.getpid())
    elif "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ:
        threading.Thread(target=_watch, args=(int(main),), daemon=True).start()


def _watch(main: int) -> None:
    while os.getppid() == main:
        time.sleep(_SECONDS)
    os._exit(1)
