"""The script of mutants: each differs in one place, the code is left as it was, and a fault that is seen is told so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.reliability.mutants import EQUIVALENT, ROOT, Trial, mirror_of, mutants, survivors

SUMS = ROOT / "src/noising/diffusion/likelihood/sums.py"
GAUSSIAN = ROOT / "src/noising/diffusion/gaussian.py"


def test_each_mutant_is_another_program() -> None:
    every = mutants(GAUSSIAN)
    sources = [mutant.source for mutant in every]
    assert len({*sources}) == len(sources) > 20
    original = ast.unparse(ast.parse(GAUSSIAN.read_text()))
    assert original not in sources
    for mutant in every:
        compile(mutant.source, mutant.file, "exec")
        changed = [(a, b) for a, b in zip(original.splitlines(), mutant.source.splitlines(), strict=True) if a != b]
        assert len(changed) == 1, mutant


def test_every_equivalent_one_is_of_the_code_as_it_is() -> None:
    of_file = {file: mutants(ROOT / "src/noising" / file) for file in {entry.file for entry in EQUIVALENT}}
    for entry in EQUIVALENT:
        assert any(map(entry.covers, of_file[entry.file])), entry


@pytest.mark.slow
def test_a_fault_is_caught_and_the_code_as_it_is_passes(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    tests = mirror_of("diffusion/gaussian.py")
    assert trial.run(tests, 300) == 0
    minus = next(mutant for mutant in mutants(GAUSSIAN) if "-" in mutant.code)
    assert trial.caught(minus, tests)
    assert trial.run(tests, 300) == 0
    assert [*survivors(SUMS, trial)] == []
