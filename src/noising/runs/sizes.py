"""Limits on the size that a stranger's file unfolds to: a small one can be written so that it fills any memory."""

import zipfile
from pathlib import Path
from typing import Any

UNFOLDED = 2**26  # bytes that any archive may hold
RATIO = 20  # times its own size that an archive may hold beside; arrays of numbers shrink to a tenth at best
ENTRIES = 10_000_000  # of nested lists and mappings, written out


class UnfoldingError(ValueError):
    """A file unfolds to far more than its size."""


def require_archive_size(path: Path) -> None:
    """Raise UnfoldingError if a zip archive holds more bytes than its size allows."""
    with zipfile.ZipFile(path) as archive:
        held = sum(member.file_size for member in archive.infolist())
    if held > UNFOLDED + RATIO * path.stat().st_size:
        raise UnfoldingError(f"expands to {held / 2**30:.1f} GiB, far more than its size allows")


def require_written_out(content: Any) -> None:
    """Raise UnfoldingError if nested containers, which may hold one another many times, are too many written out."""
    if _entries(content, {}) > ENTRIES:
        raise UnfoldingError("expands to millions of entries: its parts refer to one another many times")


def _entries(content: Any, counted: dict[int, int]) -> int:
    if not isinstance(content, dict | list | tuple):
        return 1
    if id(content) not in counted:
        counted[id(content)] = ENTRIES + 1  # of one that holds itself
        parts = content.values() if isinstance(content, dict) else content
        counted[id(content)] = 1 + sum(_entries(part, counted) for part in parts)
    return counted[id(content)]
