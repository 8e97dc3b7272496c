"""What is computed once of a data set and kept: in NOISING_CACHE, or the user's own cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import platformdirs
from torch import Tensor

from noising.configuration import ConfigError
from noising.training.run import replacing

__all__ = ["digest", "kept"]

Kept = TypeVar("Kept")


def kept(name: str, write: Callable[[IO[bytes]], None], read: Callable[[Path], Kept]) -> Kept:
    """What a file of the cache holds; where it is not there, or damaged, it is made again.

    Raises ConfigError if it cannot be written.
    """
    file = Path(os.environ.get("NOISING_CACHE") or platformdirs.user_cache_path("noising")) / name
    with suppress(Exception):
        return read(file)
    mine = file.with_name(f"{name}.{os.getpid()}")  # several jobs of a sweep may make it at once
    try:
        with replacing(mine) as target:
            write(target)
        os.replace(mine, file)
    except OSError as error:
        raise ConfigError(
            f"cannot write {file} ({error.strerror}): set NOISING_CACHE to a folder that can be"
        ) from error
    return read(file)


def digest(*parts: bytes | Tensor) -> str:
    """32 hexadecimal digits that tell the bytes and the tensors' shapes and contents."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
    return sha.hexdigest()[:32]
