"""From the command to the first training step a reader passes few files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from traceback import walk_stack
from typing import Any

import pytest

import noising as package
from noising.training.module import DiffusionModule
from tests.helpers import SMALL, Outcome

PACKAGE = Path(package.__file__).parent


def test_at_most_five_files_stand_on_the_stack_of_the_first_step(
    noising: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[set[Path]] = []
    training_step = DiffusionModule.training_step

    def inspected(self: DiffusionModule, *arguments: Any) -> Any:
        if not stacks:
            stack = {Path(frame.f_code.co_filename) for frame, _ in walk_stack(sys._getframe())}
            stacks.append({path.relative_to(PACKAGE) for path in stack if path.is_relative_to(PACKAGE)})
        return training_step(self, *arguments)

    monkeypatch.setattr(DiffusionModule, "training_step", inspected)
    outcome = noising("train", *SMALL, "trainer.max_steps=1", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    (stack,) = stacks
    files = {Path("training", "module.py"), *(path for path in stack if path.parts[0] != "cli")}
    assert Path("commands", "train.py") in files
    assert len(files) <= 5, sorted(files)
