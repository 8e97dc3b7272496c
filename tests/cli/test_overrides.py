"""Every mistake is one line and exit code 2, and leaves no folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import Dataset

from noising.cli.overrides import Composer, composer
from noising.config.choices import conf_dir

COSIN = "schedule=cosin: no such choice; did you mean cosine? (choices: cosine, linear)"

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("schedul=linear", "schedul: no such option; did you mean schedule?"),
        ("+schedul=linear", "schedul: no such option; did you mean schedule?"),
        ("schedule=cosin", COSIN),
        ("trainer.max_step=3", "trainer.max_step: no such option; did you mean trainer.max_steps?"),
        ("max_steps=3", "max_steps: no such option; did you mean trainer.max_steps?"),
        ("+extra=1", "extra: no such option; see --cfg job for all options"),
        ("+performance.compil=true", "performance.compil: no such option; did you mean performance.compile?"),
        (
            "+model.widht=3",
            "model.widht: no such option; did you mean model.width? (Network has: channels, width)",
        ),
        ("model.width=big", "model.width=big: expected int"),
        ("model.width=0", "model: width must be at least 1, got 0"),
        ("model.width=0 hydra.run.dir=a/b", "model: width must be at least 1, got 0"),
        ("hydra.run.dir=", "hydra.run.dir= is empty: name a folder, or leave it out"),
        ("model.width=???", "model.width has no value: add model.width=..."),
        ("seed=0,1", "seed=0,1: several values; add -m to sweep over them, or write a list as key=[1,2]"),
        ("schedule=linear timesteps=${nope}", "Interpolation key 'nope' not found; full_key: schedule.steps"),
        ("resume=nope", "resume=nope: no run there (there is no nope/.hydra/overrides.yaml)"),
        ("resume=", "resume= is empty: write resume=true, or resume=FOLDER with a run's folder"),
        ("--config-dir nope", "--config-dir: there is no folder nope"),
        ("--foo", "unrecognized arguments: --foo; see --hydra-help"),
        ("--cfg job schedule=cosin", COSIN),
        ("-m seed=0,1 --cfg job", "--cfg shows a single run: leave out -m, and give each option one value"),
        ("--info defaults -m", "--info shows a single run: leave out -m, and give each option one value"),
        (
            "--cfg job --info defaults",
            "argument --info/-i: not allowed with argument --cfg/-c; see --hydra-help",
        ),
        ("seed=0,1 --cfg job", "seed=0,1: several values; --cfg shows one run: give one, or write key=[1,2]"),
        ("-m schedule=linear,cosin seed=0,1", COSIN),
        ("-m seed=0,1 model.width=4,wide", "model.width=wide: expected int"),
        (
            "-m trainer.devices=2 seed=0,1",
            "a sweep cannot launch DDP subprocesses: add trainer.strategy=ddp_spawn (or run the jobs one by one)",
        ),
    ],
)
def test_mistake_is_one_line_and_leaves_no_folder(run: Run, tmp_path: Path, words: str, line: str) -> None:
    assert run(*words.split()) == (2, "", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_a_run_is_shown(run: Run) -> None:
    code, out, _ = run("--run", "--cfg", "job", "seed=5")
    assert (code, "seed: 5\n" in out) == (0, True)


def test_bad_syntax(run: Run) -> None:
    code, _, error = run("a=[")
    assert code == 2
    assert error.startswith("error: cannot read the override 'a=['")
    assert error.count("\n") == 1


def test_a_defect_keeps_its_traceback(run: Run) -> None:
    code, _, error = run("model.width=13")
    assert code == 1
    assert "Traceback" in error
    assert "RuntimeError: a defect" in error


def test_a_config_that_is_not_there_is_named(run: Run, toy: Path) -> None:
    assert run("--config-name", "nope")[2] == f"error: --config-name: there is no config nope in {toy / 'conf'}\n"


def test_an_interruption_before_the_job_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("noising.cli.main.launch", interrupted)
    assert run("seed=1") == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_flag_with_a_wrong_word(run: Run) -> None:
    code, out, error = run("--cfg", "joob")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "--cfg" in error
    assert "joob" in error


class Pictures(Dataset[torch.Tensor]):
    """Images whose own options have names that are not those of data=torch_dataset, but for one."""

    def __init__(self, root: str = ".", flip: bool = False) -> None: ...


@pytest.fixture
def composing() -> Iterator[Composer]:
    with composer("train", str(conf_dir())) as composing:
        yield composing


def anew(composing: Composer, part: str, words: str) -> Any:
    """A part of the config that words compose."""
    return OmegaConf.select(composing.compose(composing.with_parts_anew(words.split())), part)


NET = {"_target_": "mine.Net", "depth": 2}


@pytest.mark.parametrize(
    "words",
    [
        "model._target_=mine.Net model.depth=2",
        "+model._target_=mine.Net +model.depth=2 ~model",
        "model=unet model._target_=mine.Net model.depth=2",
        "model._target_=mine.Net model.depth=2 optimizer._target_=mine.Lion optimizer.rho=1",
        "model._target_=mine.Net model.depth=2 ~model.width",
    ],
)
def test_a_part_begins_without_the_options_of_the_one_it_replaces(composing: Composer, words: str) -> None:
    assert anew(composing, "model", words) == NET


def test_a_part_of_the_same_class_stays(composing: Composer) -> None:
    words = "model._target_=noising.models.unet.UNet model.width=8"
    assert composing.with_parts_anew(words.split()) == words.split()
    assert anew(composing, "model", words) == {**anew(composing, "model", ""), "width": 8}


def test_an_option_that_no_class_names_stays(composing: Composer) -> None:
    for words in ("model.width=8", "trainer._target_=mine.Trainer", "~model", "hydra.run.dir=_target_"):
        assert composing.with_parts_anew(words.split()) == words.split()
    assert anew(composing, "trainer.max_steps", "trainer._target_=mine.Trainer") == anew(
        composing, "trainer.max_steps", ""
    )


def test_a_part_of_a_part_begins_anew_too(composing: Composer) -> None:
    words = "callbacks.samples._target_=mine.Samples callbacks.samples.often=true"
    assert anew(composing, "callbacks.samples", words) == {"_target_": "mine.Samples", "often": True}
    assert anew(composing, "callbacks.quality", words) == anew(composing, "callbacks.quality", "")
    words = "model._target_=mine.Net model.inner._target_=mine.Inner model.inner.width=3"
    inner = {"_target_": "mine.Inner", "width": 3}
    assert anew(composing, "model", words) == {"_target_": "mine.Net", "inner": inner}


def test_every_value_of_a_sweep_begins_anew(composing: Composer) -> None:
    words = ["model._target_=mine.A,mine.B", "model.depth=1,2"]
    assert composing.with_parts_anew(words) == ["~model", "++model._target_=mine.A,mine.B", "++model.depth=1,2"]


@pytest.mark.parametrize("swept", ["schedule=cosine,linear", "seed=0,1", "seed=range(3)", "seed=interval(0,3)"])
def test_a_part_begins_anew_beside_a_sweep_over_others(composing: Composer, swept: str) -> None:
    words = [swept, "model._target_=noising.models.unet.UNet,mine.B"]
    assert composing.with_parts_anew(words) == [swept, "~model", f"++{words[1]}"]


def test_a_part_that_the_config_has_not_is_left_to_hydra(composing: Composer) -> None:
    for words in ("+callbacks.mine._target_=mine.Watch", "+callbacks.mine={_target_: mine.Watch}"):
        assert composing.with_parts_anew([words]) == [words]


def test_a_torch_dataset_becomes_that_of_torch_dataset(composing: Composer) -> None:
    here = f"{__name__}.Pictures"
    found = anew(composing, "data", f"data._target_={here} data.root=x data.flip=true data.batch_size=3 data.levels=4")
    assert found == {
        **OmegaConf.to_container(anew(composing, "data", "data=torch_dataset")),
        "dataset": {"_target_": here, "root": "x", "flip": True},
        "batch_size": 3,
        "levels": 4,
    }
    nested = anew(composing, "data.dataset", f"data._target_={here} data.root._target_=mine.Root")
    assert nested == {"_target_": here, "root": {"_target_": "mine.Root"}}
    both = anew(composing, "data", f"data._target_={here} data.test._target_={here} data.test.root=y")
    assert both.test == {"_target_": here, "root": "y"}


def test_another_source_of_images_does_not(composing: Composer) -> None:
    found = anew(composing, "data", "data._target_=noising.data.image_folder.ImageFolder data.root=x")
    assert found == {"_target_": "noising.data.image_folder.ImageFolder", "root": "x"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model._target_=[a]", "model._target_=['a']: expected text"),
        ("model._target_=toy_parts.Linear model.step=3", "model.step: no such option; did you mean model.steps? ("),
        ("model._target_=toy_parts.Netwrk", "model: cannot import _target_ 'toy_parts.Netwrk': toy_parts has no "),
        ("model._target_=toy_parts.Network model.width=1,2", "model.width=1,2: several values; add -m to sweep over"),
        ("--cfg job model._target_=toy_parts.Network model.width=1,2", "model.width=1,2: several values; --cfg show"),
        ("~model model._target_=toy_parts.Network model.width=0", "model: width must be at least 1, got 0"),
    ],
)
def test_a_mistake_in_a_part_of_ones_own_is_one_line(run: Run, words: str, line: str) -> None:
    code, out, error = run(*words.split())
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert error.startswith(f"error: {line}"), error


def test_the_config_of_a_part_of_ones_own_is_shown(run: Run) -> None:
    code, out, _ = run("--cfg", "job", "model._target_=toy_parts.Linear", "model.steps=3")
    assert code == 0
    assert "model:\n  _target_: toy_parts.Linear\n  steps: 3\n" in out
