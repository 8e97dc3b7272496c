"""A run's config is composed once, and each part of its recipe is built once and handed on."""

from __future__ import annotations

import inspect
import typing
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.noise_labels import ScaledTime
from noising.diffusion.objectives import Regression
from noising.diffusion.parameterizations import Epsilon
from noising.diffusion.schedules import LinearBeta
from noising.diffusion.times import LowDiscrepancy
from noising.diffusion.variances import FixedSmall
from noising.models.unet import UNet
from tests.helpers import SMALL

PARTS = (LinearBeta, Epsilon, ScaledTime, FixedSmall, LowDiscrepancy, Regression, DiscretizedGaussian, UNet)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts of the compositions of a config, and of the constructions of each part."""
    counted: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return function(*args, **kwargs)

        return call

    composing = counting("composed", ConfigLoaderImpl.load_configuration)
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", composing)
    for part in PARTS:
        counted_init = counting(part.__name__, part.__init__)
        # options are checked against signature and annotations
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        counted_init.__signature__ = inspect.Signature([own, *inspect.signature(part).parameters.values()])
        counted_init.__annotations__ = typing.get_type_hints(part.__init__)
        monkeypatch.setattr(part, "__init__", counted_init)
    return counted


def test_a_training_composes_once_and_builds_each_part_once(noising: Callable[..., Any], counts: Counter[str]) -> None:
    outcome = noising("train", *SMALL, "schedule=linear", "schedule.beta_end=0.03", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert counts == {"composed": 1, **{part.__name__: 1 for part in PARTS}}
    counts.clear()
    resumed = noising("train", "resume=run", "trainer.max_steps=25")
    assert resumed.code == 0, resumed.err
    assert counts == {"composed": 1, **{part.__name__: 1 for part in PARTS}}
    for command in (["evaluate", "bound=stratified", "bound.times=4"], ["sample", "n=4", "sampler.steps=4"]):
        counts.clear()
        outcome = noising(*command, "checkpoint=run")
        assert outcome.code == 0, outcome.err
        assert counts == {"composed": 1, **{part.__name__: 1 for part in PARTS}}


def test_a_mistake_may_compose_once_more(noising: Callable[..., Any], counts: Counter[str]) -> None:
    assert "did you mean trainer.max_steps?" in noising("train", "trainer.max_step=3").err
    assert counts["composed"] <= 3  # with the mistake, without it, and what the command takes
    assert set(counts) == {"composed"}
