"""Every recipe's identities hold, and each planted fault breaks one that names the part."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from noising.config.theory import build_recipe, build_sampler
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.gaussian import Gaussian
from noising.diffusion.levels import Geometry, NoiseLevel, VariancePreserving
from noising.diffusion.likelihood.decoders import Decoder, DiscretizedGaussian
from noising.diffusion.noise_labels import NoiseLabel
from noising.diffusion.objectives import Regression
from noising.diffusion.parameterizations import Epsilon, Parameterization, Velocity
from noising.diffusion.recipe import Recipe
from noising.diffusion.samplers import Ancestral, Sampler, StepWeights, WeightedSum
from noising.diffusion.schedules import Cosine, LinearLogSNR, Schedule
from noising.diffusion.times import BatchSlot, TimeSampler
from noising.diffusion.transitions import Transition
from noising.diffusion.variances import LearnedRange, ReverseVariance
from noising.runs.folder import Run
from noising.verification.report import identities
from tests.helpers import COMPANIONS, CONF, Command, composed

EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]


@pytest.fixture(scope="module")
def sound() -> tuple[Recipe, Sampler]:
    cfg = composed()
    return build_recipe(cfg, 32, 256), build_sampler(cfg, cfg.timesteps)


def broken(recipe: Recipe, sampler: Sampler, timesteps: int = 100) -> set[str]:
    """The parts that do not hold."""
    return {row.part for row in identities(recipe, sampler, timesteps) if not row.holds}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_holds(experiment: str) -> None:
    cfg = composed(f"experiment={experiment}", "sampler.steps=20")
    failed = [
        row for row in identities(build_recipe(cfg, 32, 256), build_sampler(cfg, cfg.timesteps), 200) if not row.holds
    ]
    assert not failed


@pytest.mark.parametrize("timesteps", [1, 2, 3])
def test_short_chains_hold(timesteps: int, sound: tuple[Recipe, Sampler]) -> None:
    assert broken(*sound, timesteps) == set()


OTHERS = [
    ("schedule", ["noise_label=scaled_log_snr", "parameterization=velocity"]),
    ("parameterization", ["schedule=linear"]),
    ("variance", []),
    ("times", []),
    ("objective", []),
    ("weighting", []),
    ("decoder", []),
    ("sampler", []),
]


@pytest.mark.parametrize(
    ("group", "choice", "others"),
    [(group, path.stem, others) for group, others in OTHERS for path in sorted((CONF / group).glob("*.yaml"))],
)
def test_every_choice_holds(group: str, choice: str, others: list[str]) -> None:
    cfg = composed(*COMPANIONS.get(choice, ()), *others, f"{group}={choice}", "sampler.steps=20")
    failed = [
        row for row in identities(build_recipe(cfg, 32, 256), build_sampler(cfg, cfg.timesteps), 100) if not row.holds
    ]
    assert not failed


class Rising(Schedule):
    """The sign of the curve is wrong."""

    def log_snr(self, t: Tensor) -> Tensor:
        return -10 + 20 * t


class Wavy(Schedule):
    """Falls on the whole, but not everywhere."""

    def log_snr(self, t: Tensor) -> Tensor:
        return 10 - 20 * t + 0.6 * torch.sin(40 * t)


class HalfRatio(Geometry):
    """α²/σ² = e^(λ/2)."""

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(log_snr / 2).sqrt(), torch.sigmoid(-log_snr / 2).sqrt()

    def measure(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha**2 + sigma**2


class OffTheLine(Schedule):
    """α and σ a thousandth too large: their ratio is right."""

    def log_snr(self, t: Tensor) -> Tensor:
        return 10 - 20 * t

    def scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = VariancePreserving().scales(log_snr)
        return 1.001 * alpha, 1.001 * sigma


class WrongInverse(LinearLogSNR):
    def time(self, log_snr: Tensor) -> Tensor:
        return super().time(log_snr + 0.01)


class WrongRate(LinearLogSNR):
    def log_snr_rate(self, t: Tensor) -> Tensor:
        return -super().log_snr_rate(t)


class EndsEarly(Schedule):
    """As much signal as noise is left at t = 1."""

    def log_snr(self, t: Tensor) -> Tensor:
        return 10 - 10 * t


FAULTY_SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "sign": Rising,
    "not monotone": Wavy,
    "ratio": lambda: LinearLogSNR(10, -10, geometry=HalfRatio()),
    "geometry": OffTheLine,
    "inverse": WrongInverse,
    "rate": WrongRate,
    "end": EndsEarly,
}


@pytest.mark.parametrize("fault", FAULTY_SCHEDULES)
def test_a_faulty_schedule_is_caught(fault: str, sound: tuple[Recipe, Sampler]) -> None:
    recipe, sampler = sound
    assert "schedule" in broken(recipe._replace(schedule=FAULTY_SCHEDULES[fault]()), sampler)


class SwappedEnds(ReverseVariance):
    """`LearnedRange` with its ends exchanged."""

    outputs = 2

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        intercept, slope = LearnedRange().line(step)
        return intercept, -slope


class TooLarge(ReverseVariance):
    """σ_t² for c σ_t²."""

    def line(self, step: Transition) -> tuple[Tensor, Tensor]:
        return 2 * step.later.sigma.log(), torch.zeros_like(step.c)


@pytest.mark.parametrize("variance", [SwappedEnds(), TooLarge()], ids=["swapped", "too large"])
def test_a_faulty_variance_is_caught(variance: ReverseVariance, sound: tuple[Recipe, Sampler]) -> None:
    recipe, sampler = sound
    assert "variance" in broken(recipe._replace(variance=variance), sampler)


class WrongSolution(Parameterization):
    """Velocity, solved as if it were ε."""

    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return Velocity().mix(level)

    def solve(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return Epsilon().solve(output, x_t, level)


class WrongGain(Parameterization):
    def mix(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return Velocity().mix(level)

    def gain(self, level: NoiseLevel) -> Tensor:
        return level.alpha / level.sigma


@pytest.mark.parametrize("parameterization", [WrongSolution(), WrongGain()], ids=["solution", "gain"])
def test_a_faulty_parameterization_is_caught(parameterization: Parameterization, sound: tuple[Recipe, Sampler]) -> None:
    recipe, sampler = sound
    assert "parameterization" in broken(recipe._replace(parameterization=parameterization), sampler)


class BlurredLabel(NoiseLabel):
    """Rounds the level away near noise."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.log_snr.clamp(min=0)


class CleanTarget(Regression):
    """Compares the output with another level's target."""

    def forward(self, denoiser, x, t, noise, **condition):  # type: ignore[no-untyped-def]
        return super().forward(denoiser, x, t, 1.1 * noise, **condition)


class Negative(Regression):
    """Climbs."""

    def forward(self, denoiser, x, t, noise, **condition):  # type: ignore[no-untyped-def]
        return {"loss": -super().forward(denoiser, x, t, noise, **condition)["loss"]}


class Biased(TimeSampler):
    """Draws small times more often and says that it does not."""

    def sample(self, draw: BatchSlot, schedule: Schedule) -> tuple[Tensor, Tensor]:
        t = draw.own((1 - draw.generator.random(draw.total)) ** 2)
        return t, torch.ones_like(t)


class Leaky(Decoder):
    """Its outer bins end."""

    levels = 256

    def log_prob(self, x: Tensor, reverse: Gaussian, x_1: Tensor, level: NoiseLevel) -> Tensor:
        inside = x.clamp(-1 + 2 / 255, 1 - 2 / 255)
        return DiscretizedGaussian(256).log_prob(inside, reverse, x_1, level)


@pytest.mark.parametrize(
    ("group", "part"),
    [
        ("noise_label", BlurredLabel()),
        ("objective", CleanTarget(lambda level, gain: torch.ones_like(gain))),
        ("objective", Negative(lambda level, gain: torch.ones_like(gain))),
        ("times", Biased()),
        ("decoder", Leaky()),
    ],
)
def test_a_faulty_part_is_caught(group: str, part: object, sound: tuple[Recipe, Sampler]) -> None:
    recipe, sampler = sound
    assert group in broken(recipe._replace(**{group: part}), sampler)


class Louder(WeightedSum):
    """Adds a fifth more noise than the reverse step has."""

    def weights(self, denoiser: Denoiser, steps: Transition) -> StepWeights:
        weights = Ancestral(self.steps, self.grid).weights(denoiser, steps)
        return weights._replace(log_std=weights.log_std + math.log(1.2))


def test_a_faulty_sampler_is_caught(sound: tuple[Recipe, Sampler]) -> None:
    recipe, sampler = sound
    assert broken(recipe, Louder(20, sampler.grid)) == {"sampler"}


def test_a_fault_in_the_posterior_is_caught(monkeypatch: pytest.MonkeyPatch, sound: tuple[Recipe, Sampler]) -> None:
    right = Transition.c.fget
    assert right is not None
    monkeypatch.setattr(Transition, "c", property(lambda self: right(self) * 1.001))
    recipe, sampler = sound
    assert "schedule" in broken(recipe._replace(schedule=Cosine(100)), sampler)


@pytest.mark.usefixtures("figures")
def test_command_prints_draws_and_tells_by_its_code(noising: Command, tmp_path: Path) -> None:
    sound = noising("verify", "timesteps=100", "sampler.steps=10", "hydra.run.dir=sound")
    assert sound.code == 0, sound.err
    assert "24 of 24 identities hold" in sound.out
    assert (tmp_path / "sound" / "verification.png").stat().st_size > 10_000
    (tmp_path / "mine.py").write_text(
        "from noising.diffusion.schedules import Schedule\n\n\nclass Mine(Schedule):\n"
        "    def log_snr(self, t):\n        return 20 * t - 10\n"
    )
    faulty = noising("verify", "timesteps=100", "sampler.steps=10", "schedule._target_=mine.Mine", "hydra.run.dir=mine")
    statuses = [Run(tmp_path / name).summary["status"] for name in ("sound", "mine")]
    assert statuses == ["finished", "failed"]
    assert faulty.code == 1, faulty.err
    assert "schedule: steps of 2000 at which λ(t) does not fall" in faulty.err
    assert "2000" in (tmp_path / "mine" / "identities.csv").read_text()


@pytest.mark.usefixtures("figures")
def test_weightings_are_drawn(noising: Command, tmp_path: Path) -> None:
    outcome = noising("weightings", "hydra.run.dir=drawn")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "drawn" / "weightings.png").stat().st_size > 20_000


def test_identities_are_all_reached() -> None:
    """No file of the package is left out of the report."""
    package = importlib.import_module("noising.verification")
    report = (Path(package.__path__[0]) / "report.py").read_text()
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("report", "identity"):
            assert f"noising.verification.{module.name} import" in report
