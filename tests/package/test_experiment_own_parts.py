"""A schedule, a sampler and an objective of the user's own are tried before training: a mistake is one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from noising.errors import ConfigError
from noising.experiment import Experiment
from tests.helpers import composed

FORWARD = "def forward(self, denoiser, x, t, noise, **condition):"
PARTS = f"""
import torch
import noising as nz

class Rising(nz.Schedule):
    def log_snr(self, t): return 20 * t - 10

class NoSuper(nz.Schedule):
    def __init__(self): pass
    def log_snr(self, t): return 10 - 20 * t

class Numpy(nz.Schedule):
    def log_snr(self, t): return 10 - 20 * t.numpy()

class Empty(nz.Sampler):
    def path(self, denoiser, noise, class_label=None): return iter(())

class Bare(nz.Sampler):
    def path(self, denoiser, noise, class_label=None): yield noise()

class Half(nz.Sampler):
    def path(self, denoiser, noise, class_label=None): yield nz.PathPoint(noise()[..., :4], noise())

class Raises(nz.Sampler):
    def path(self, denoiser, noise, class_label=None): yield nz.PathPoint(noise() @ torch.ones(3), noise())

class NoLoss(nz.Objective):
    {FORWARD} return {{"los": x.mean((1, 2, 3))}}

class Bared(nz.Objective):
    {FORWARD} return x.mean((1, 2, 3))

class Scalar(nz.Objective):
    {FORWARD} return {{"loss": x.mean()}}

class Constant(nz.Objective):
    {FORWARD} return {{"loss": x.mean((1, 2, 3))}}

class Right(nz.Regression):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the module `wrong_parts`."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "wrong_parts.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("wrong_parts", None)


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def experiment(group: str, name: str) -> Experiment:
    options = [f"~{group}", f"+{group}._target_=wrong_parts.{name}"]
    return Experiment(composed(*options, *(["+sampler.steps=3"] if group == "sampler" else [])))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Rising", "schedule: λ(t) of Rising rises at t = 0.001: it must fall, from clean to noise"),
        ("NoSuper", "schedule: λ(t) of NoSuper cannot be computed or differentiated"),
        ("Numpy", "schedule: λ(t) of Numpy cannot be computed or differentiated"),
    ],
)
def test_schedules(name: str, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _ = experiment("schedule", name).recipe
    assert str(raised.value).startswith(line)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Empty", "sampler: Empty cannot be used: path yields nothing: an nz.PathPoint is expected"),
        ("Bare", "sampler: Bare cannot be used: path yields a Tensor, where an nz.PathPoint is expected"),
        ("Half", "sampler: Half cannot be used: path yields x_t of shape (1, 1, 8, 4), where (1, 1, 8, 8) is expected"),
        ("Raises", "sampler: Raises cannot be used: RuntimeError: "),
    ],
)
def test_samplers(name: str, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _ = experiment("sampler", name).sampler
    assert str(raised.value).startswith(line)
    assert ("(wrong_parts.py:" in str(raised.value)) == (name == "Raises")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("NoLoss", "returns 'los', but 'loss' is expected"),
        ("Bared", "returns a Tensor, but a dict with 'loss' is expected"),
        ("Scalar", "returns a loss of shape () for two images, but (2,) is expected: one per image"),
        ("Constant", "returns a loss without a gradient"),
    ],
)
def test_objectives(name: str, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _ = experiment("objective", name).module
    assert str(raised.value) == f"objective: {name} cannot be used: {line}"


def test_right_ones_pass() -> None:
    assert type(experiment("objective", "Right").module.objective).__name__ == "Right"
