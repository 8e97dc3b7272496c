"""Two cores are enough for one thread each of two processes; nothing here may reach for the network or an account.

Where a test has several threads, those that wait do not spin: on two busy cores that is most of what they would cost.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", WANDB_MODE="offline", HYDRA_FULL_ERROR="0")
os.environ.update(OMP_WAIT_POLICY="passive")

import atexit
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.helpers import AS_TRAINED, Command, composed, drawing, leave_figures_blank, run_command

if TYPE_CHECKING:
    from noising.data.image_data import ImageData

torch.set_num_threads(1)
leave_figures_blank()

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it
    os.environ["NOISING_CACHE"] = tempfile.mkdtemp(prefix="noising-cache-")
    atexit.register(shutil.rmtree, os.environ["NOISING_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a CUDA device where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Hydra's handlers write to the streams of the test they were made in, which are closed in the next."""
    log = logging.getLogger()
    handlers, level = log.handlers[:], log.level
    yield
    log.handlers[:], log.level = handlers, level


@pytest.fixture
def figures() -> Iterator[None]:
    """Figures are drawn in the test; elsewhere they are left blank."""
    with drawing():
        yield


@pytest.fixture
def noising(tmp_path: Path) -> Command:
    """noising("train", *overrides) in a folder of the test's own."""
    return lambda name, *overrides: run_command(name, tmp_path, *overrides)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the small configuration without an experiment or classes, with its figures."""
    folder = tmp_path_factory.mktemp("trained")
    with drawing():
        outcome = run_command("train", folder, *AS_TRAINED, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return folder / "run"


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """The digits that ship with the package, as a run has them."""
    from noising.experiment import Experiment  # Lightning with it, which the tests of the mathematics can do without

    return Experiment(composed()).data


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights, of Inception's names and shapes."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], feature_extractor_weights_path=path)
    torch.save(network.state_dict(), path)
    return path
