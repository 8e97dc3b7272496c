"""Arrays of images in .npz files: their shapes are known before memory is filled, and no more is read than is used."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


class StoredArray:
    """One array of an .npz file, before its numbers are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Read the header. Raises ValueError for one that is damaged, or of an array of Python's objects."""
        version = npy.read_magic(stream)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"is of version {version} of numpy's format")
        self.shape, by_columns, self.dtype = readers[version](stream)
        if by_columns and len(self.shape) > 1:
            raise ValueError("holds its numbers column by column: save it in C order")
        if self.dtype.hasobject:
            raise ValueError("holds objects, which only their own code could read")
        self._stream = stream

    @property
    def form(self) -> str:
        """Type and shape in words, for messages."""
        return f"{self.dtype} of shape {self.shape}"

    def into(self, target: NDArray[Any]) -> None:
        """Fill a C-ordered array of this type with the next numbers. Raises ValueError where there are fewer."""
        room, filled = memoryview(target).cast("B"), 0  # type: ignore[arg-type]
        while filled < len(room):
            got = self._stream.readinto(room[filled : filled + 2**24])  # type: ignore[attr-defined]
            if not got:
                raise ValueError("ends too early")
            filled += got

    def read(self, count: int | None = None) -> NDArray[Any]:
        """The first `count` rows, or all."""
        rows = self.shape[0] if count is None else count
        target = np.empty((rows, *self.shape[1:]), self.dtype)
        self.into(target)
        return target


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz file. Raises ValueError if it is none."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def stored_array(path: Path, name: str) -> Iterator[StoredArray]:
    """Open one array of an .npz file.

    Raises ValueError, which names the file, if it is damaged or holds no such array, and for what the block raises.
    """
    names = array_names(path)
    if name not in names:
        raise ValueError(f"{path} holds {', '.join(names) or 'nothing'}, and no array {name}")
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        try:
            yield StoredArray(stream)
        except ValueError as error:
            raise ValueError(f"{path}: {name} {error}") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a ValueError that names it."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged, or no .npz file ({why})") from error
