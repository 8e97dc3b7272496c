"""The errors whose message is for the user: one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """What the user asked for cannot be done; the message is one line and is shown without a traceback."""

    exit_code = 2


class ConfigError(UsageError):
    """An option is misspelt, of the wrong type, or refused by what it configures."""


@contextmanager
def config_errors(path: str) -> Iterator[None]:
    """Turns a ValueError of the block into `ConfigError("path: ...")`, e.g. where a data module is set up.

    So it does with an OverflowError and its like, which numbers too large lead to.
    """
    try:
        yield
    except UsageError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ArithmeticError):
        return f"a number is too large, or too small, to compute with ({words})"
    if isinstance(error, MemoryError | RuntimeError):
        return f"more than the memory holds; make it smaller ({words})"
    return words
