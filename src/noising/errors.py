"""The errors whose message is for the user: one line, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """A request of the user's that cannot be met; its message is one line, shown without a traceback."""

    exit_code = 2


class ConfigError(UsageError):
    """An option is misspelt, of the wrong type, or refused by what it configures."""


@contextmanager
def config_errors(path: str) -> Iterator[None]:
    """Turn a ValueError of the block into `ConfigError("path: ...")`, and an ArithmeticError of numbers too large."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


def require(holds: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not holds:
        raise ValueError(message)


def one_line(error: BaseException) -> str:
    """The error's message on one line, explained where Python or torch says little."""
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ArithmeticError):
        return f"a number is too large, or too small, to compute with ({words})"
    if isinstance(error, MemoryError | RuntimeError):
        return f"more than the memory holds; make it smaller ({words})"
    return words
