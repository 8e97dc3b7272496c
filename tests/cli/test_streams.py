"""Standard streams that are closed, no longer read, or of few letters: the work goes on, and what can be said is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from noising.cli.streams import Output
from noising.commands.tables import print_table
from noising.errors import encodable
from tests.helpers import ROOT, SMALL, TRAIN


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("w(λ) ± 0.5 … −1", "ascii", "w(lambda) +- 0.5 ... -1"),
        ("w(λ) ± 0.5", "latin-1", "w(lambda) ± 0.5"),
        ("w(λ) ± 0.5", "utf-8", "w(λ) ± 0.5"),
        ("w(λ) ± 0.5", None, "w(λ) ± 0.5"),
        ("σ, Σ, ε, µs", "ascii", "sigma, Sigma, epsilon, us"),
        ("Fréchet, x₂, x̂", "ascii", "Frechet, x2, x-hat"),
        ("世.png", "ascii", "\\u4e16.png"),  # a name that has no letters in ASCII keeps its own
        ("a\udcff", "utf-8", "a\\udcff"),
    ],
)
def test_letters_that_an_encoding_lacks_are_spelt(text: str, encoding: str | None, shown: str) -> None:
    assert encodable(text, encoding) == shown


def test_a_table_in_ascii_stays_in_line() -> None:
    written = io.BytesIO()
    output = Output(io.TextIOWrapper(written, encoding="ascii"), "standard output")
    with redirect_stdout(output):  # type: ignore[type-var]
        print_table("of λ", ("name", "± images"), [["one", "1.0 ± 0.5"]])
        sys.stdout.flush()
    assert written.getvalue().decode().splitlines() == [
        "of lambda",
        "+-------------------+",
        "| name |  +- images |",
        "|------+------------|",
        "| one  | 1.0 +- 0.5 |",
        "+-------------------+",
    ]


def test_standard_error_is_spelt_too() -> None:
    """Python's own would write \\u03bb."""
    written = io.BytesIO()
    output = Output(io.TextIOWrapper(written, encoding="ascii", errors="backslashreplace"), "standard error")
    print("no λ", file=output, flush=True)
    assert written.getvalue() == b"no lambda\n"


REDIRECTED = [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "| true"]


def redirected(redirection: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell, its streams redirected in bash's words; its exit code is that of the command alone."""
    script = f'set -o pipefail; "$0" "$@" {redirection}'
    command = ["bash", "-c", script, sys.executable, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("redirection", [">&-", "<&- >&- 2>&-", "| true"])
def test_help_into_no_stream(redirection: str, tmp_path: Path) -> None:
    done = redirected(redirection, tmp_path, str(TRAIN), "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_is_told_where_standard_output_is_closed(tmp_path: Path) -> None:
    done = redirected(">&-", tmp_path, str(TRAIN), "nosuch=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nosuch: no such option")


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints by a stream's number is lost, and does not stand in a file of ours."""
    (tmp_path / "printing.py").write_text(
        "import os\nfrom noising.cli.streams import standard_streams\n"
        "with standard_streams(), open('result', 'w') as file:\n"
        "    for number in (1, 2):\n        os.write(number, b'noise')\n    file.write('ours')\n"
    )
    done = redirected("<&- >&- 2>&-", tmp_path, "printing.py")
    assert done.returncode == 0
    assert (tmp_path / "result").read_text() == "ours"


@pytest.mark.slow
@pytest.mark.parametrize("redirection", REDIRECTED)
def test_a_training_outlives_its_streams(redirection: str, tmp_path: Path) -> None:
    done = redirected(redirection, tmp_path, str(TRAIN), *SMALL, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert '"status": "finished"' in (tmp_path / "run" / "summary.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["streams", "all"],
)
def test_weightings_in_ascii(locale: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "weightings.py"), "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, env={**os.environ, **locale})
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").startswith("w(lambda) of every weighting and experiment is plotted in run/")
