"""Faults that the tests of the mathematics must see: one operator, number or comparison replaced at a time.

    python -m tests.reliability.mutants src/noising/diffusion/levels.py      # all of diffusion/ and metrics/ if none

Each mutant is tried by the tests that mirror its file, and if these see nothing by all tests of its room, in a child of
a process that has imported torch, on a copy of src. It is caught if a test fails or does not end. What survives is
printed; EQUIVALENT has those that change no number. About three seconds a mutant.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"diffusion": ["diffusion", "reference", "diffusion/likelihood"], "metrics": ["metrics"]}
"""Folders of src/noising, and those of their tests."""
REFUSES = ("diffusion/recipe.py",)
"""What computes no number, but says which parts cannot work together: the tests of mistakes."""
LONG = ("diffusion/likelihood/test_adaptive.py",)
"""Tests of a minute, for the files of their own folder alone."""
PRELOADED = ("hydra", "hypothesis", "lightning.pytorch", "pydantic", "scipy.stats", "torch", "torchmetrics")
"""What the tests import: once, for every child."""
PATIENCE = 3  # times the seconds of the tests on the code as it is, and ten more

DEFAULTS = "diffusion/test_published_defaults.py"
MORE_TESTS = {
    "diffusion/grids.py": [
        "diffusion/test_samplers.py",
        "diffusion/test_samplers_convergence.py",
        "reference/test_edm.py",
    ],
    "diffusion/samplers.py": ["diffusion/test_samplers.py", "diffusion/test_samplers_convergence.py", "reference"],
    "diffusion/noise_labels.py": ["diffusion/test_denoiser.py", "diffusion/test_recipe.py"],
    "diffusion/likelihood/meter.py": ["diffusion/likelihood/test_estimators.py"],
    "metrics/measurement.py": ["training/callbacks/test_quality.py"],
    "metrics/quality.py": ["metrics/test_measurement.py"],
}
"""Tests of a file besides those that mirror it."""


class Equivalent(NamedTuple):
    """A replacement that changes no number: its file, the code that it replaces, by what ("": by anything), and why."""

    file: str
    code: str
    replacement: str
    why: str

    def covers(self, mutant: Mutant) -> bool:
        return (self.file, self.code) == (mutant.file, mutant.code) and self.replacement in ("", mutant.replacement)


def _of(file: str, *entries: tuple[str, str, str]) -> list[Equivalent]:
    """Entries of one file: the code, its replacement, and why."""
    return [Equivalent(file, *entry) for entry in entries]


EQUIVALENT = [
    *(
        Equivalent(file, code, "", "as many at once: the cost alone")
        for file, code in (
            ("metrics/scores.py", "CHUNK = 500"),
            ("diffusion/likelihood/pilot.py", "AT_ONCE = 64"),
            ("diffusion/likelihood/controls.py", "AT_ONCE = 1000"),
            ("metrics/quality.py", "batch: ClassVar[int] = 500"),
            ("metrics/quality.py", "batch = 50"),
            ("metrics/quality.py", "batch = 32"),
            ("diffusion/likelihood/estimators.py", "at_once=64"),
        )
    ),
    Equivalent("metrics/scores.py", "max(neighbours) + 1", "max(neighbours) + 2", "more of them than are looked at"),
    Equivalent("metrics/scores.py", "distance[torch.arange(len(rows)), rows] = -1", "", "below every distance"),
    Equivalent(
        "diffusion/levels.py", "coefficient.dim() == 0", "coefficient.dim() == 1", "torch casts a scalar itself"
    ),
    Equivalent("diffusion/likelihood/solvers.py", "MAX_STEPS = 1000000", "", "a limit on what may be asked for"),
    Equivalent("diffusion/samplers.py", "MAX_STEPS = 1000000", "", "a limit on what may be asked for"),
    Equivalent("diffusion/schedules.py", "2 ** 16", "", "a limit on what may be asked for"),
    Equivalent("diffusion/schedules.py", "range(64)", "", "float64 has no more than 53 digits to halve"),
    Equivalent(
        "diffusion/schedules.py",
        "torch.is_grad_enabled() and any((p.requires_grad for p in self.parameters()))",
        "torch.is_grad_enabled() or any((p.requires_grad for p in self.parameters()))",
        "whether a graph is made that nobody asks for",
    ),
    Equivalent(
        "diffusion/samplers.py",
        "raw is None or not log_std_slope",
        "raw is None and (not log_std_slope)",
        "a factor e^0 more",
    ),
    Equivalent(
        "diffusion/likelihood/controls.py",
        "1e-06 * features.abs().mean(0)",
        "2e-06 * features.abs().mean(0)",
        "images so much alike have no spread",
    ),
    *(
        Equivalent("diffusion/likelihood/pilot.py", code, replacement, "columns of the same span")
        for code, replacement in (
            ("torch.ones(count, 1)", "torch.ones(count, 2)"),
            ("index[:, None] == torch.unique(index)", "index[:, None] != torch.unique(index)"),
            ("steps - steps.mean(1, keepdim=True)", "steps + steps.mean(1, keepdim=True)"),
        )
    ),
    Equivalent("diffusion/likelihood/pilot.py", "optional[:, 0]", "optional[:, 1]", "of the same shape"),
    Equivalent(
        "diffusion/likelihood/pilot.py", "(1 - leverage).clamp(min=1e-06)", "(1 - leverage).clamp(min=2e-06)", "of none"
    ),
    Equivalent("diffusion/likelihood/meter.py", "BINS = 120", "", "points of a curve"),
    Equivalent("diffusion/likelihood/meter.py", "MIN_DRAWS = 64", "", "points of a curve"),
    Equivalent("diffusion/likelihood/meter.py", "_Error(math.nan, 1)", "_Error(math.nan, 2)", "of no number"),
    Equivalent("diffusion/likelihood/meter.py", "self._images[8:11]", "self._images[8:12]", "there are no more"),
    Equivalent("metrics/quality.py", "MAX_SAMPLES = 10000000", "", "a limit on what may be asked for"),
    Equivalent("metrics/quality.py", "data.train.pixels[:1]", "data.train.pixels[:2]", "looked at for their channels"),
    Equivalent(
        "diffusion/likelihood/decoders.py", "lower + upper > 0", "lower + upper > 1", "there the digits suffice anyway"
    ),
    Equivalent(
        "diffusion/guidance.py",
        "torch.linspace(0.001, 1, 64, dtype=torch.float64)",
        "",
        "times at which two schedules are compared",
    ),
    Equivalent(
        "metrics/quality.py",
        "self.title or f\"Fréchet distance ({self.distance.upper().replace('_', '-')})\"",
        "",
        "a title is no number",
    ),
    Equivalent("diffusion/inversion.py", "_STRAIGHT = 0.001", "", "there the chord and the arc agree"),
    Equivalent("diffusion/objectives.py", "2.0 ** (-40)", "2.0 ** (-41)", "as near to 1, where a rate may be infinite"),
    Equivalent(
        "diffusion/objectives.py",
        "t.double().cpu() * self.timesteps - 1e-06",
        "t.double().cpu() * self.timesteps - 2e-06",
        "far above a rounding and far below a step in any case",
    ),
    Equivalent(
        "diffusion/likelihood/divergences.py",
        "streams.uniform(x.shape[1:]) < 0.5",
        "streams.uniform(x.shape[1:]) >= 0.5",
        "the other of two fair signs",
    ),
    *_of(
        "diffusion/likelihood/meter.py",
        ("batch_size=64", "batch_size=65", "how many are evaluated at once"),
        ("8 * batch_size", "", "how many are looked through at once"),
        ("edges[-1]", "edges[+1]", "where no draws remain, none are added to the last bin"),
    ),
    Equivalent("diffusion/likelihood/adaptive.py", "images.size + 1", "images.size + 2", "the last place is not read"),
    *_of(
        "metrics/measurement.py",
        ("_ranks() > 1", "", "where the host is the device, nothing moves"),
        ("nearest(features, self._training.features, 1)", "", "the first alone is read"),
        ("BATCH = 100", "", "images of an update of sums"),
        ("SEED = 0", "", "other draws of the same law"),
    ),
    *_of(
        "metrics/classifier.py",
        ("torch.set_num_threads(1)", "torch.set_num_threads(2)", "another rounding"),
        ("pixels.shape[-1]", "pixels.shape[-2]", "of a square"),
        ("torch.arange(side) + shift", "torch.arange(side) - shift", "shifts to both sides are as likely"),
    ),
    Equivalent("metrics/measurement.py", "MAX_DEFAULT_SAMPLES = 2000", "", "a limit on what is drawn unasked"),
    Equivalent("diffusion/objectives.py", "last_time: float = 1.0", "", "no time lies beyond 1"),
    Equivalent("metrics/reference_features.py", "sha.hexdigest()[:32]", "", "letters of a file's name"),
    Equivalent("diffusion/times.py", "SMALLEST = 1e-09", "", "a time at which nothing is noised"),
]


class Mutant(NamedTuple):
    """A module's source with one replacement."""

    file: str
    line: int
    code: str
    replacement: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.code}  ->  {self.replacement}"


_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Lt: ast.GtE,  # where a whole number stands beside it, that number plus one is tried too
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_READABLE = (ast.BinOp, ast.Compare, ast.BoolOp, ast.Call, ast.Subscript, ast.arguments, ast.stmt)
_NAMES = {"min": "max", "max": "min", "floor": "ceil", "ceil": "floor"}


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute numbers, in the order of the source: no annotation, text, decorator or error."""
    refuses = isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)  # tests of mistakes try it
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "msg") or (refuses and field in ("test", "body")):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id == "require":
                continue  # options are checked at the door; its tests are those of mistakes
            if isinstance(
                child, ast.expr | ast.stmt | ast.keyword | ast.comprehension | ast.arguments | ast.match_case
            ):
                yield child
                yield from _code(child)


def _replace(node: ast.AST) -> Iterator[None]:
    """Change the node in place, in one way after another, and bring it back."""
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPPED:
        before = node.op
        node.op = _SWAPPED[type(before)]()  # type: ignore[assignment]
        yield
        node.op = before  # type: ignore[assignment]
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPPED:
        operators = node.ops
        node.ops = [_SWAPPED[type(operators[0])](), *operators[1:]]  # type: ignore[list-item]
        yield
        node.ops = operators
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
        yield
        node.op = ast.USub()
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        number = node.value
        assert isinstance(number, int | float)
        node.value = number + 1 if isinstance(number, int) or not number else 2 * number
        yield
        node.value = number
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        name = node.func.id
        node.func.id = _NAMES[name]
        yield
        node.func.id = name


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a file of src/noising."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    file = path.resolve().relative_to(ROOT / "src" / "noising").as_posix()
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in _code(tree):
        around = node  # the expression that the node stands in, to be read
        while not isinstance(around, _READABLE):
            around = parents[around]
        before = _read(around, node)
        for _ in _replace(node):
            found.append(Mutant(file, getattr(node, "lineno", 0), before, _read(around, node), ast.unparse(tree)))
    return found


def _read(around: ast.AST, node: ast.AST) -> str:
    """The code around a node; of the options of a function the one that it is the default of."""
    if not isinstance(around, ast.arguments):
        return ast.unparse(around)
    names = [option.arg for option in around.args][-len(around.defaults) :] if around.defaults else []
    pairs = [*zip(names, around.defaults, strict=True)]
    pairs += [
        (option.arg, default) for option, default in zip(around.kwonlyargs, around.kw_defaults, strict=True) if default
    ]
    found = (f"{name}={ast.unparse(default)}" for name, default in pairs if node in ast.walk(default))
    return next(found, "")


def mirror_of(file: str) -> list[str]:
    """The tests that mirror a file, and those named beside it."""
    folder, stem = Path("tests", file).parent, Path(file).stem
    mirror = [folder / f"test_{stem}.py", *sorted((ROOT / folder).glob(f"test_{stem}_*.py"))]
    paths = [
        *mirror,
        *(Path("tests", more) for more in [DEFAULTS, *MORE_TESTS.get(file, [])]),
    ]
    return sorted({str(ROOT / path) for path in paths if (ROOT / path).exists()})


def room_of(file: str) -> list[str]:
    """The tests of a file's room."""
    folders = [ROOT / "tests" / folder for folder in ROOMS[file.split("/")[0]]]
    long = [ROOT / "tests" / path for path in LONG]
    return [str(path) for folder in folders for path in sorted(folder.glob("test_*.py")) if path not in long]


class Trial:
    """A copy of src in which one file after another is replaced, and the tests are run on it."""

    def __init__(self, folder: Path) -> None:
        self.src = folder / "src"
        shutil.copytree(ROOT / "src", self.src, ignore=shutil.ignore_patterns("__pycache__"))
        os.symlink(ROOT / "conf", folder / "conf")
        self._seconds: dict[tuple[str, ...], float] = {}

    def patience(self, tests: list[str]) -> float:
        """Seconds in which these tests end if they end at all. RuntimeError if they fail on the code as it is."""
        if tuple(tests) not in self._seconds:
            began = time.monotonic()
            if self.run(tests, 1800) != 0:
                raise RuntimeError(f"they do not pass on the code as it is: {' '.join(tests)}")
            self._seconds[*tests] = PATIENCE * (time.monotonic() - began) + 10
        return self._seconds[*tests]

    def caught(self, mutant: Mutant, tests: list[str]) -> bool:
        """Whether one of the tests fails, or does not end."""
        seconds = self.patience(tests)
        target = self.src / "noising" / mutant.file
        before = target.read_text(encoding="utf-8")
        target.write_text(mutant.source, encoding="utf-8")
        try:
            return self.run(tests, seconds) != 0
        finally:
            target.write_text(before, encoding="utf-8")

    def run(self, tests: list[str], seconds: float) -> int | None:
        """The exit code of pytest on the copy: 0 if all pass; None if it does not end in time."""
        child = os.fork()
        if child == 0:
            self._child(tests)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                if code not in (0, 1, 2, 4):  # 2 and 4: a module cannot be imported
                    raise RuntimeError(f"pytest ended with {code}")
                return code
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _child(self, tests: list[str]) -> None:
        import pytest

        os.chdir(ROOT)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.path[:0] = [str(self.src), str(ROOT)]
        code = 3
        with contextlib.suppress(BaseException):
            options = ["-x", "-q", "-m", "not slow", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
            code = int(pytest.main([*options, *tests]))
            import noising

            if not str(noising.__file__).startswith(str(self.src)):
                code = 3
        os._exit(code)


def survivors(path: Path, trial: Trial) -> Iterator[Mutant]:
    """The mutants of a file that no test catches, those that change no number left out."""
    every = mutants(path)
    for mutant in every:
        long = [str(ROOT / "tests" / path) for path in LONG if Path(path).parent == Path(mutant.file).parent]
        each = [tests for tests in (mirror_of(mutant.file), long, room_of(mutant.file)) if tests]
        equivalent = any(entry.covers(mutant) for entry in EQUIVALENT)
        if not equivalent and not any(trial.caught(mutant, tests) for tests in each):
            yield mutant
    if every:
        print(f"{every[0].file}: {len(every)} mutants", flush=True)


def main(paths: list[str]) -> int:
    """Print the survivors of these files; 1 if there are any."""
    for name in PRELOADED:
        importlib.import_module(name)
    sys.dont_write_bytecode = True
    files = [Path(path) for path in paths]
    if not files:
        found = [path for room in ROOMS for path in sorted((ROOT / "src" / "noising" / room).rglob("*.py"))]
        files = [path for path in found if not path.as_posix().endswith(REFUSES)]
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        for path in files:
            for mutant in survivors(path, trial):
                print(mutant, flush=True)
                count += 1
    return int(count > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
