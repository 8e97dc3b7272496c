"""The machine and the code of a run: commit, versions, devices, command line.

Nothing secret is recorded: no environment variables, and no names of users, hosts or folders.
"""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from noising.config.secrets import masked

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
    # a package installed inside somebody's checkout does not belong to it: its files are not tracked
    tracked = _git_output(here.parent, "ls-files", "--error-unmatch", here.name) is not None
    folder = here.parent if tracked else Path.cwd()
    commit = _git_output(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git_output(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git_output(folder: Path, *arguments: str) -> str | None:
    try:
        git = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()


def _cpu() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
