"""Options that are not given have the values of the publications, and ours are those that docs and conf name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from noising.diffusion import grids, weightings
from noising.diffusion.likelihood.adaptive import Adaptive
from noising.diffusion.likelihood.decoders import DiscretizedGaussian
from noising.diffusion.likelihood.dequantization import FlowLikelihood
from noising.diffusion.likelihood.estimators import Exact, Stratified
from noising.diffusion.noise_labels import ScaledLogSNR
from noising.diffusion.objectives import Hybrid
from noising.diffusion.parameterizations import Karras
from noising.diffusion.samplers import DDIM, Ancestral, Heun
from noising.diffusion.schedules import (
    Cosine,
    LearnedLine,
    LearnedLogSNR,
    LinearBeta,
    LinearLogSNR,
    LogLinearSigma,
    ResolutionShift,
    ScaledLinearBeta,
    SigmoidAlphaBar,
)
from noising.diffusion.times import LogitNormal, LogNormal, LossAware
from noising.diffusion.variances import Optimal
from noising.metrics.quality import ClassifierDistance, DINOv2Distance, InceptionDistance
from noising.metrics.scores import inception_score

Choice = Callable[..., Any]
DEFAULTS: list[tuple[Choice, dict[str, float]]] = [
    # Ho et al. (2020), section 4; 8-bit images
    (LinearBeta, {"timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}),
    (DiscretizedGaussian, {"levels": 256}),
    # Rombach et al. (2021), their code
    (ScaledLinearBeta, {"timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}),
    # Nichol & Dhariwal (2021), equations 16 and 17, section 3.3 and their code
    (Cosine, {"timesteps": 1000, "offset": 0.008, "max_beta": 0.999}),
    (Hybrid, {"bound_weight": 0.001}),
    (LossAware, {"history": 10, "uniform_share": 0.001}),
    # Jabri et al. (2022), the listing of their appendix
    (SigmoidAlphaBar, {"start": -3, "end": 3, "temperature": 1, "smallest": 1e-9}),
    # Kingma et al. (2021), appendices B and H
    (LinearLogSNR, {"log_snr_max": 13.3, "log_snr_min": -5}),
    (LearnedLine, {"log_snr_max": 13.3, "log_snr_min": -5, "image_scale": 1}),
    (LearnedLogSNR, {"log_snr_max": 13.3, "log_snr_min": -5, "width": 128}),
    (ScaledLogSNR, {"log_snr_max": 20, "log_snr_min": -20, "clamped": True}),
    # Karras et al. (2022), table 1
    (LogLinearSigma, {"sigma_min": 0.002, "sigma_max": 80}),
    (LogNormal, {"mean": -1.2, "std": 1.2}),
    (Karras, {"sigma_data": 0.5}),
    (weightings.edm, {"sigma_data": 0.5}),
    (grids.karras, {"rho": 7}),
    # Hoogeboom et al. (2023); Esser et al. (2024), section 3.1; Hang et al. (2023); Choi et al. (2022), section 4
    (ResolutionShift, {"base_resolution": 64}),
    (LogitNormal, {"mean": 0, "std": 1}),
    (weightings.min_snr, {"limit": 5}),
    (weightings.p2, {"k": 1, "gamma": 1}),
    # Kingma & Gao (2023), section 4
    (weightings.sigmoid, {"bias": 2}),
    # Salimans et al. (2016), their code
    (inception_score, {"splits": 10}),
    # Heusel et al. (2017), their code: the last layer before the classes
    (InceptionDistance, {"layer": 2048, "repeats": 1, "flips": False, "neighbours": 5}),
    # our own, as conf/ has them
    (ClassifierDistance, {"repeats": 3, "flips": False, "neighbours": 5}),
    (DINOv2Distance, {"repeats": 1, "flips": False, "neighbours": 5}),
    (Ancestral, {"clip": 1}),
    (DDIM, {"clip": 1, "eta": 0}),
    (Heun, {"clip": 1, "churn": 0, "churn_min": 0.05, "churn_max": 50, "churn_noise": 1}),
    (Optimal, {"knots": 32, "images": 128}),
    (FlowLikelihood, {"replicates": 2}),
    (Exact, {"clip": 1}),
    (Stratified, {"times": 64, "clip": 1}),
    (Adaptive, {"stderr": 0.01, "replicates": 8, "pilot_images": 32, "pilot_times": 32, "clip": 1}),
]


@pytest.mark.parametrize(("choice", "published"), DEFAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_option_that_is_not_given_is_as_published(choice: Choice, published: dict[str, float]) -> None:
    defaults = {name: option.default for name, option in inspect.signature(choice).parameters.items()}
    assert {name: default for name, default in defaults.items() if isinstance(default, int | float)} == published
