"""The errors whose message is for the user: one line, without a traceback."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

_REORDERING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LINE_ENDS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")


def printable(text: object) -> str:
    """Text that is not ours as part of one line: line ends are spaces, what a terminal would obey is left out.

    These are control characters and marks that turn the order of letters; bytes of a file's name that are not UTF-8
    become question marks.
    """
    shown = []
    for letter in str(text):
        kind = unicodedata.category(letter)
        if letter in _LINE_ENDS:
            shown.append(" ")
        elif kind == "Cs":
            shown.append("?")
        elif kind != "Cc" and letter not in _REORDERING:
            shown.append(letter)
    return "".join(shown)


_SPELT = {
    **{"±": "+-", "−": "-", "–": "-", "—": "-", "·": "*", "×": "x", "…": "...", "²": "^2", "³": "^3", "½": "1/2"},
    **{"≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "→": "->", "←": "<-", "∞": "inf", "√": "sqrt", "µ": "u", "•": "*"},
    **{"\u0302": "-hat", "\u0304": "-bar", "\u0303": "-tilde", "λ": "lambda", "Λ": "Lambda", "ß": "ss", "💡": ""},
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("─━═╸╺", "-"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇", "+"),
}


def encodable(text: str, encoding: str | None) -> str:
    """Text with the letters that an encoding lacks spelt in ASCII: λ is lambda. None is an encoding that has all."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(_encodable_letter(letter, encoding or "utf-8") for letter in text)
    return text


def _encodable_letter(letter: str, encoding: str) -> str:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        if letter in _SPELT:
            return _SPELT[letter]
        family, _, name = unicodedata.name(letter, "").partition(" LETTER ")
        if family in ("GREEK SMALL", "GREEK CAPITAL"):
            word = name.split()[0]
            return word.lower() if family.endswith("SMALL") else word.capitalize()
        base = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()  # é is e, ₂ is 2
        return base or letter.encode("ascii", "backslashreplace").decode()
    return letter


class UsageError(ValueError):
    """A request of the user's that cannot be met; its message is one line, shown without a traceback."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows for the error: as on the command line, no traceback."""
        return [f"error: {self}"]


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


def in_one_line(text: str) -> str:
    """The lines of a text joined by spaces; a path in one of them keeps its own."""
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def one_line(error: BaseException) -> str:
    """The error's message on one line, explained where Python or torch says little."""
    words = in_one_line(str(error)) or type(error).__name__
    if isinstance(error, ArithmeticError):
        return f"a number is too large, or too small, to compute with ({words})"
    if isinstance(error, MemoryError | RuntimeError):
        return f"more than the memory holds; make it smaller ({words})"
    return words
