"""Files, names, and that conf/ and the classes are one another's mirror.

.ci/run holds the style, the types and the floors: ruff, mypy and import-linter.
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf

from tests.helpers import ROOT, public_names

TESTS = sorted((ROOT / "tests").rglob("*.py"))
SOURCES = sorted((ROOT / "src" / "noising").rglob("*.py"))
CONFIGS = sorted((ROOT / "conf").glob("*/*.yaml"))


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_is_one_noun(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert text.startswith('"""')


def test_tests_share_what_stands_in_helpers() -> None:
    """No test needs another: what two of them need is in a module of helpers."""
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in TESTS
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) .*\b(test_\w+|conftest)\b", line)
    ]
    assert found == []


def test_a_folder_of_tests_is_a_folder_of_sources() -> None:
    """Beside those of the package as a whole, the float64 reference, what befalls a run, and the examples."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in TESTS if path.name.startswith("test_")}
    own = {Path(name) for name in ("package", "reference", "reliability", "examples")}
    assert folders - own <= {path.parent.relative_to(ROOT / "src" / "noising") for path in SOURCES} - {Path()}


RIDDLES = {
    *("told", "asked", "kept", "once", "likest", "look", "along", "like", "factors", "blaming", "watch"),
    *("told_classes", "asked_classes", "FREE", "BARE", "MOST", "FEWEST", "_LESS"),
}
"""Names that say nothing to who has not written them; the field has better ones."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_names_are_the_fields(path: Path) -> None:
    with open(path, "rb") as file:
        names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
    assert not names & RIDDLES


def _targets() -> dict[str, Path]:
    found = {}
    for path in CONFIGS:
        node = OmegaConf.to_container(OmegaConf.load(path))
        nodes = [node] if "_target_" in node else [n for n in node.values() if isinstance(n, dict)]
        found |= {n["_target_"]: path for n in nodes if "_target_" in n}
    return found


def test_every_target_of_conf_is_there() -> None:
    for target in _targets():
        assert callable(get_method(target) if target.rpartition(".")[2].islower() else _locate(target)), target


def _locate(target: str) -> object:
    module, _, name = target.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


# Floors whose public classes and functions are all choices of a group: what has no YAML cannot be chosen.
CHOICES = {
    "noising.diffusion.schedules": "Schedule",
    "noising.diffusion.parameterizations": "Parameterization",
    "noising.diffusion.noise_labels": "NoiseLabel",
    "noising.diffusion.variances": "ReverseVariance",
    "noising.diffusion.times": "TimeSampler",
    "noising.diffusion.objectives": "Objective",
    "noising.diffusion.likelihood.decoders": "Decoder",
    "noising.diffusion.likelihood.estimators": "BoundEstimator",
    "noising.diffusion.likelihood.adaptive": "BoundEstimator",
    "noising.diffusion.samplers": "Sampler",
    "noising.diffusion.likelihood.solvers": "Solver",
    "noising.diffusion.likelihood.divergences": "Divergence",
    "noising.metrics.quality": "QualityMetric",
    "noising.data.augmentation": "Augmentation",
    "noising.data.digits": "ImageData",
    "noising.data.photo_patches": "ImageData",
    "noising.data.image_folder": "ImageData",
    "noising.data.torchvision_data": "ImageData",
    "noising.data.image_net64": "ImageData",
    "noising.data.ffhq64": "ImageData",
}


@pytest.mark.parametrize(("module", "base"), CHOICES.items())
def test_every_final_class_has_a_yaml(module: str, base: str) -> None:
    members = vars(__import__(module, fromlist=["_"]))
    final = [
        name
        for name, thing in members.items()
        if inspect.isclass(thing)
        and not inspect.isabstract(thing)
        and not name.startswith("_")
        and thing.__module__ == module
        and not thing.__subclasses__()
        and base in {ancestor.__name__ for ancestor in thing.__mro__}
    ]
    assert final
    assert {f"{module}.{name}" for name in final} <= set(_targets())


@pytest.mark.parametrize("module", ["weightings", "grids"])
def test_every_function_of_a_group_has_a_yaml(module: str) -> None:
    names = public_names(importlib.import_module(f"noising.diffusion.{module}"))
    assert {f"noising.diffusion.{module}.{name}" for name in names} <= set(_targets())


NAMED_FREELY = {
    *("augmentation", "benchmark", "callbacks", "ema", "logger", "metrics", "model", "optimizer", "trainer"),
}
"""Groups whose files are named after a paper or a default."""


def test_yaml_is_named_after_its_class() -> None:
    for target, path in _targets().items():
        if path.parent.name not in NAMED_FREELY:
            name = target.rpartition(".")[2]
            snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
            assert path.stem in (snake, name.lower(), "linear", "dpmpp_2m", "difference"), f"{path.stem} names {name}"


def test_importing_the_package_is_light() -> None:
    _run("-c", "import sys, noising, noising.cli.main; assert not {'torch', 'lightning'} & set(sys.modules)")
