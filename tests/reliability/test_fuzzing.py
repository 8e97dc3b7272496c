"""Every option of every group with values it may not take: each runs, or gets one line and exit code 2.

The cases are generated from conf/ (fuzzing.py). A share of them runs by default, the rest with -m slow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from noising.commands.benchmark import benchmark
from noising.commands.compare import compare
from noising.commands.evaluate import evaluate
from noising.commands.latents import latents
from noising.commands.likelihood import likelihood
from noising.commands.reference import reference
from noising.commands.sample import sample
from tests.helpers import SMALL, Command, write_greys
from tests.reliability import fuzzing
from tests.reliability.fuzzing import Case, complaint

SHARES = 7
"""One in so many of the cases is in the default run, of every option another."""
SMALLER = tuple(option for option in SMALL if not option.startswith("bound"))
GROUPS = fuzzing.groups()
OF_OTHERS = {"benchmark", "divergence", "guidance", "solver", "experiment"}
"""Groups that `train` does not take, and the one whose files are of many groups."""
ONE_OF_A_CLASS = ("unet", "ddpm", "ncsnpp", "vdm")  # networks; the other files have fewer of the same options
WORKING = {  # what else a choice needs
    "objective=hybrid": ["variance=learned_range"],
    "schedule=learned_line": ["objective=continuous_bound", "decoder=softmax_gaussian"],
    "schedule=learned_log_snr": ["objective=continuous_bound"],
    "data=image_folder": ["data.root=images", "data.resolution=8", "data.batch_size=4"],
}


@functools.cache
def _training() -> fuzzing.Command:
    return fuzzing.command("train", lambda config: None)


def training(folder: Path) -> fuzzing.Command:
    """`train`, for a run in the folder; what it composed is kept from test to test."""
    running = _training()
    running.start = lambda config: fuzzing.start_training(config, folder)
    return running


def share(cases: Iterable[Case], part: int | None) -> list[Case]:
    """One in SHARES of the cases, or all others (None)."""
    listed = list(cases)
    return [case for place, case in enumerate(listed) if (place % SHARES == 0) == (part is not None)]


def assert_all_taken(running: fuzzing.Command, cases: Iterable[Case]) -> None:
    wrong = {str(case): words for case in cases if (words := complaint(running, case))}
    assert not wrong, "\n".join(f"{running.name} {case}: {words}" for case, words in wrong.items())


def base_of(group: str, choice: str, images: Path) -> tuple[str, ...]:
    """Overrides of a small run with that choice of the group, which works."""
    name = f"{group}={choice}"
    others = [option.replace("=images", f"={images}") for option in WORKING.get(name, [])]
    small = [option for option in SMALLER if group != "metrics" or option != "~metrics"]
    return (*small, f"logger=[{choice}]" if group == "logger" else name, *others)


def cases_of_train(group: str, images: Path) -> Iterator[Case]:
    for choice in ONE_OF_A_CLASS if group == "model" else GROUPS[group]:
        options = [(f"{group}.{path}", default) for path, default in fuzzing.options_of(fuzzing.read(group, choice))]
        if options:
            yield from fuzzing.value_cases(base_of(group, choice, images), iter(options))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 images."""
    return write_greys(tmp_path_factory.mktemp("images"))


with_the_rest = pytest.mark.parametrize(
    "part", [pytest.param(0, id="some"), pytest.param(None, id="the_rest", marks=pytest.mark.slow)]
)


@with_the_rest
@pytest.mark.parametrize("group", [group for group in GROUPS if group not in OF_OTHERS])
def test_options_of_a_group(group: str, part: int | None, images: Path, tmp_path: Path) -> None:
    assert_all_taken(training(tmp_path), share(cases_of_train(group, images), part))


@with_the_rest
def test_options_at_the_top(part: int | None, tmp_path: Path) -> None:
    options = fuzzing.options_of({name: value for name, value in fuzzing.read("train").items() if name != "resume"})
    assert_all_taken(training(tmp_path), share(fuzzing.value_cases(SMALLER, options), part))


@with_the_rest
def test_a_group_that_is_no_choice(part: int | None, tmp_path: Path) -> None:
    cases = [
        case
        for group, choices in GROUPS.items()
        if group not in OF_OTHERS
        for case in fuzzing.group_cases(SMALLER, group, choices[0])
    ]
    assert_all_taken(training(tmp_path), share(cases, part))


OTHERS: dict[str, tuple[Callable[[DictConfig, Path], None], str, tuple[str, ...]]] = {
    "sample": (sample, "checkpoint=RUN n=2 sampler.steps=2", ("sampler=heun", "sampler=ddim", "grid=karras")),
    "evaluate": (evaluate, "checkpoint=RUN", ("bound=adaptive",)),
    "latents": (latents, "checkpoint=RUN", ("grid=karras",)),
    "likelihood": (likelihood, "checkpoint=RUN", ("solver=runge_kutta4", "solver=dormand_prince")),
    "compare": (compare, "runs=[RUN,RUN]", ()),
    "benchmark": (benchmark, "checkpoint=RUN", ("benchmark=bound", "benchmark=sampler")),
    "reference": (reference, "data=digits", ()),
}


def cases_of(command: str, run: Path) -> Iterator[Case]:
    """The command's own options, and those of some of its groups."""
    base = tuple(OTHERS[command][1].replace("RUN", str(run)).split())
    own = {name: value for name, value in fuzzing.read(command).items() if name != "resume"}
    yield from fuzzing.value_cases(base, fuzzing.options_of(own))
    for chosen in OTHERS[command][2]:
        group, _, choice = chosen.partition("=")
        options = ((f"{group}.{path}", value) for path, value in fuzzing.options_of(fuzzing.read(group, choice)))
        yield from fuzzing.value_cases((*base, chosen), options)


@with_the_rest
@pytest.mark.parametrize("command", list(OTHERS))
def test_other_commands(command: str, part: int | None, trained: Path, tmp_path: Path) -> None:
    job = OTHERS[command][0]
    running = fuzzing.command(command, lambda config: fuzzing.start_job(job, config, tmp_path))
    assert_all_taken(running, share(cases_of(command, trained), part))


def test_there_are_enough_of_them(images: Path) -> None:
    """A misread conf/ would make for few cases, and all of them would pass."""
    groups = [len(share(cases_of_train(group, images), 0)) for group in GROUPS if group not in OF_OTHERS]
    others = [len(share(cases_of(command, images), 0)) for command in OTHERS]
    assert sum(groups) + sum(others) >= 500
    assert sum(count > 0 for count in groups) >= 15


def test_a_case_is_in_one_share_and_can_be_tried_again(tmp_path: Path) -> None:
    """Both shares may run in one process, where what a case has composed is kept."""
    case = Case((*SMALLER, "data=digits"), "~data.batch_size")
    cases = [case._replace(override=str(number)) for number in range(2 * SHARES)]
    some, rest = share(cases, 0), share(cases, None)
    assert (len(some), sorted([*some, *rest])) == (2, sorted(cases))
    assert [complaint(training(tmp_path), case) for _ in range(2)] == [None, None]


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("train", "model.width=1e30"),
        ("train", "model.blocks=1000000000000"),
        ("train", "sampler.steps=1000000000000"),
        ("train", "optimizer.lr=null"),
        ("train", "optimizer.lr=nan"),
        ("train", "~schedule"),
        ("train", "model=null"),
        ("train", "data=[]"),
        ("train", "seed=''"),
        ("train", "resume=0.5"),
        ("train", "schedule=linear schedule.beta_end=1e308"),
        ("train", "trainer.devices=1000000000"),
        ("train", "tags=3"),
        ("train", "callbacks.quality.every_n_epochs=inf"),
        ("sample", "sampler.clip=inf"),
        ("evaluate", "splits=[tset]"),
        ("latents", "steps=[1e12]"),
        ("likelihood", "solver=runge_kutta4 solver.steps=1000000000000"),
        ("compare", "runs=[]"),
        ("benchmark", "batch_size=''"),
        ("reference", "count=nan"),
        ("verify", "times=log_normal times.mean=1e308"),
        ("weightings", "weighting=min_snr weighting.limit=-inf"),
    ],
)
def test_real_commands(command: str, override: str, trained: Path, noising: Command, tmp_path: Path) -> None:
    needs = [f"checkpoint={trained}"] if "checkpoint" in fuzzing.read(command) else []
    needs += ["~metrics"] if command == "train" else []
    outcome = noising(command, *needs, *override.split())
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert fuzzing.wrong_line(outcome.err.strip(), Case((), override.split()[-1])) is None
    assert list(tmp_path.iterdir()) == []
