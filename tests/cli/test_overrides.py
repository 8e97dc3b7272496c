"""Every mistake is one line and exit code 2, and leaves no folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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
        ("resume=", "resume= is empty: write resume=true, or resume= and a run's folder"),
        ("--config-dir nope", "--config-dir: there is no folder nope"),
        ("--foo", "unrecognized arguments: --foo; see --hydra-help"),
        ("--cfg job schedule=cosin", COSIN),
        ("-m seed=0,1 --cfg job", "--cfg is of one run: leave out -m, and give each option one value"),
        ("--info defaults -m", "--info is of one run: leave out -m, and give each option one value"),
        (
            "--cfg job --info defaults",
            "argument --info/-i: not allowed with argument --cfg/-c; see --hydra-help",
        ),
        ("seed=0,1 --cfg job", "seed=0,1: several values; --cfg is of one run: give one, or write key=[1,2]"),
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
