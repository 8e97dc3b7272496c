"""The standard streams of a command: whatever becomes of them, the work goes on.

They may be closed, a pipe that nobody reads any more, a file on a full disk, or a terminal that knows ASCII alone.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from noising.errors import encodable


@contextmanager
def standard_streams() -> Iterator[None]:
    """Within it, sys.stdout and sys.stderr take any text and never raise."""
    _open_closed()
    output, errors = Output(sys.stdout, "standard output"), Output(sys.stderr, "standard error")
    with redirect_stdout(output), redirect_stderr(errors):  # type: ignore[type-var]
        try:
            yield
        finally:
            output.close_quietly()
            errors.close_quietly()


def _open_closed() -> None:
    """Open the null device in place of a closed standard stream, or the next file would be written to as that stream.

    A library that prints by the stream's number would write into a result.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
            os.set_inheritable(number, True)


class Output:
    """A stream of a terminal, a pipe or a file that may fail before the work is done: the work goes on.

    `... | head` has seen enough; a file may lie on a full disk. Letters that the stream's encoding lacks are spelt.
    """

    def __init__(self, stream: Any, name: str) -> None:
        """stream: None, as Python has it, where it was closed."""
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self._name = name
        self._failed = self._said = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        spelt = encodable(text, self._stream.encoding)
        self._try(lambda: self._stream.write(spelt))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def close_quietly(self) -> None:
        """Write what is buffered; if that is impossible, forget it, or Python would end with a code of its own."""
        self.flush()
        if self._failed:
            self._forget()

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
            self._failed = False
        except BrokenPipeError:
            self._forget()
        except OSError as error:
            first, self._failed, self._said = not self._said, True, True
            if first and self._stream is not sys.__stderr__:
                print(f"{self._name} cannot be written ({error.strerror}); the work goes on", file=sys.stderr)

    def _forget(self) -> None:
        with suppress(OSError):  # not a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream.flush()
            self._failed = False
