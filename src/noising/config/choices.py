"""The folder conf/, and the classes and functions that its choices name."""

import re
from functools import cache
from pathlib import Path


def conf_dir() -> Path:
    """The folder of the configs: inside the package in a wheel, at the repository's top in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


@cache
def targets() -> frozenset[str]:
    """Every `_target_` that stands in conf/."""
    texts = (file.read_text(encoding="utf-8") for file in conf_dir().rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"^[^#\n]*?_target_: *([\w.]+)", text, re.MULTILINE))
