"""The main command as a user runs it, whole.

It takes minutes, so it is run by hand: `pytest -m slow tests/commands/test_train_default.py -s -n 0`.
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

import noising
from noising.config.theory import build_sampler
from noising.diffusion.drawing import class_labels_for, draw_images
from noising.runs.folder import Run
from tests.helpers import TRAIN

pytestmark = pytest.mark.slow

CLASSIFIERS: list[ClassifierMixin] = [
    LogisticRegression(C=0.01, max_iter=3000),
    SVC(gamma=0.001, C=10, probability=True, random_state=0),
    MLPClassifier(100, alpha=1.0, max_iter=500, random_state=0),
    ExtraTreesClassifier(500, random_state=0),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("default")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    start = time.monotonic()
    subprocess.run([sys.executable, str(TRAIN), "hydra.run.dir=run"], cwd=folder, env=environment, check=True)
    seconds = time.monotonic() - start
    print(f"python train.py: {seconds:.0f} s")
    return Run(folder / "run")


def test_bound_is_far_below_uniform(run: Run) -> None:
    summary = run.summary
    assert summary["test/bound"] + 3 * summary["test/bound_image_se"] < summary["test/uniform_baseline"] - 0.5


def test_samples_are_read_as_digits(run: Run) -> None:
    """All ten classes among 512, and 85% as surely read as 95% of the real test digits are, by any classifier."""
    trained = noising.load(run.path)
    torch.set_num_threads(2)
    asked, sampler = class_labels_for(range(512), trained.data.classes), build_sampler(trained.config, 1000)
    images = draw_images(trained.denoiser, sampler, (1, 8, 8), 1, range(512), asked)
    samples = trained.data.unscale(images).flatten(1).numpy()
    train, test = (split.pixels.flatten(1).numpy() for split in (trained.data.train, trained.data.test))
    labels = trained.data.train.labels
    assert labels is not None
    assert np.isin(train, load_digits().data).all()
    for classifier in CLASSIFIERS:
        classifier.fit(train, labels.numpy())
        sure = np.quantile(classifier.predict_proba(test).max(1), 0.05)
        probabilities = classifier.predict_proba(samples)
        share = (probabilities.max(1) >= sure).mean()
        counts = np.bincount(probabilities.argmax(1), minlength=10)
        print(f"{type(classifier).__name__}: {share:.1%} as sure as 95% of the test digits; classes {counts.tolist()}")
        assert counts.min() > 0
        assert share >= 0.85
