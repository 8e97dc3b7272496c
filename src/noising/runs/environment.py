"""The machine and the code of a run: commit, versions, devices, command line.

Nothing secret is recorded: no environment variables, and no names of users, hosts or folders.
"""

import os
import platform
import re
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from noising.config.secrets import masked
from noising.runs.checkout import checkout_of

_PACKAGES = ("noising", "lightning", "hydra-core", "numpy")


def _masked_argument(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"{name}={masked(value, name)}" if equals else str(masked(argument))


def environment() -> dict[str, Any]:
    """The content of environment.json."""
    import torch  # here: the search for a run to resume comes before torch is needed

    return {
        "argv": [Path(sys.argv[0]).name, *map(_masked_argument, sys.argv[1:])],
        "git": _git(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES} | {"torch": torch.__version__},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _git() -> dict[str, Any] | None:
    """Commit and state of the checkout that holds the package, or else the working directory; None without one."""
    here = Path(__file__).resolve()
    found = checkout_of(here.parent)
    # a package installed inside somebody's checkout does not belong to it: its files are not tracked
    if found is None or not found.has(here):
        found = checkout_of(Path.cwd())
    if found is None or found.commit is None:
        return None
    return {"commit": found.commit, "dirty": found.is_dirty}


def _cpu() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
