"""Bad input gets one line that names the option and the fix, before any work, and leaves no folder behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback

from noising.data.digits import Digits
from noising.metrics.quality import ClassifierDistance
from noising.runs.folder import Run
from tests.helpers import SMALL, Command, write_images


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("schedule=rectified_flow", "parameterization: Epsilon does not determine the clean image at t = 1"),
        (
            "schedule=zero_terminal_snr parameterization=score",
            "parameterization: Score does not determine the clean image at t = 1",
        ),
        (
            "schedule=rectified_flow parameterization=flow noise_label=log_snr",
            "noise_label: LogSNR is infinite at t = 1, where RectifiedFlow leaves no signal",
        ),
        ("variance=learned_range", "variance: LearnedRange is learned, but objective Regression never trains it"),
        ("objective=hybrid", "objective: Hybrid adds a bound that trains only the variance"),
        (
            "schedule=learned_line objective=continuous_bound",
            "decoder: LearnedLine learns its ends from the decoder's term also, and DiscretizedGaussian needs",
        ),
        ("schedule=learned_log_snr", "schedule: LearnedLogSNR is learned, but objective Regression cannot train it"),
        (
            "variance=optimal objective=variational_bound",
            "variance: Optimal is fitted to a trained network, but objective VariationalBound needs",
        ),
        (
            "times=log_normal objective=continuous_bound",
            "times: LogNormal changes the weights of the levels, but objective ContinuousBound is a bound over ",
        ),
        ("weighting=edm weighting.sigma_data=0", "weighting: sigma_data must be positive, got 0"),
        ("weighting=min_snr weighting.limit=-1", "weighting: some level has the weight -"),
        (
            "schedule=zero_terminal_snr schedule@schedule.schedule=log_linear_sigma",
            "schedule: a variance-exploding schedule cannot end without signal",
        ),
        (
            "schedule=rectified_flow parameterization=clean_image parameterization@objective.compared=flow",
            "objective.compared: for CleanImage compared as Flow, the mean weight is infinite",
        ),
    ],
)
def test_parts_that_cannot_work_together_are_refused_with_the_reason(
    overrides: str, message: str, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Digits, "load", lambda self: pytest.fail("an image was read"))
    outcome = noising("train", *overrides.split())
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}"), outcome.err
    assert outcome.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_velocity_with_min_snr_is_fine_without_terminal_signal(noising: Command) -> None:
    parts = ("schedule=zero_terminal_snr", "parameterization=velocity", "weighting=min_snr")
    outcome = noising("train", *SMALL, *parts, "trainer.max_steps=2")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedul=linear", "schedul: no such option; did you mean schedule?"),
        (
            "schedule=linaer",
            "schedule=linaer: no such choice; did you mean linear? (choices: cosine, grey_level_log_snr, ",
        ),
        ("trainer.max_step=3", "trainer.max_step: no such option; did you mean trainer.max_steps?"),
        ("model.widht=3", "model.widht: no such option; did you mean model.width?"),
        ("compared=flow", "compared: no such option; did you mean parameterization@objective.compared?"),
        ("model.width=big", "model.width=big: expected int"),
        ("model.width=0", "model: width must be"),
        ("timesteps=0", "timesteps must be a whole number from 1 to 1000000, got 0"),
        ("timesteps=2.5", "timesteps must be a whole number from 1 to 1000000, got 2.5"),
        ("timesteps=100000000000", "timesteps must be a whole number from 1 to 1000000, got 100000000000"),
        ("model.multipliers=3", "model.multipliers=3: expected a list of int"),
        ("hydra.run.dir=/proc/x", "hydra.run.dir=/proc/x: cannot make this folder"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed cannot clip gradients with"),
        ("optimizer.lr=fast", "optimizer.lr=fast: expected float"),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("data.batch_size=0", "data: batch_size must be at least 1, got 0"),
        ("data.batch_size=2000", "data.batch_size=2000 is more than the 1309 training images: lower it"),
        ("seed=-1", "seed must be a whole number from 0, got -1"),
        ("seed=one", "seed must be a whole number from 0, got one"),
        ("ema.decay=1", "ema: decay must lie in [0, 1), got 1"),
        ("lr_schedule.warmup=-5", "lr_schedule: warmup must not be negative, got -5"),
        ("grid=trailing timesteps=20", "grid: steps=100 is more than the 20 whole steps of the chain"),
        ("sampler.steps=0", "sampler: steps must be at least 1, got 0"),
        ("sampler.clip=-1", "sampler: clip must be positive or null, got -1"),
        ("validation_bound.times=7", "validation_bound: times must be an even number from 4, got 7"),
        ("bound.stderr=0", "bound: stderr must lie between 1e-9 and 1e9 bits/dim, got 0"),
        ("bound.replicates=4", "bound: replicates must be at least 8 to estimate an error, got 4"),
        ("trainer.max_steps=0", "trainer.max_steps must be a whole number from 1, got 0"),
        ("trainer.val_check_interval=0", "trainer.val_check_interval must be a whole number from 1, got 0"),
        ("trainer.max_epochs=0", "trainer.max_epochs must be a whole number from 1, got 0"),
        ("trainer.max_epochs=3 trainer.max_steps=9", "trainer.max_epochs and trainer.max_steps: give one of them"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true: weights and bounds are float32 here; choose "),
        ("trainer.precision=64-true", "trainer.precision=64-true: weights and bounds are float32 here; choose "),
        (
            "trainer.precision=transformer-engine",
            "trainer.precision=transformer-engine: weights and bounds are float32",
        ),
        ("trainer.precision=half", "trainer.precision=half: weights and bounds are float32 here; choose "),
        ("+trainer.limit_train_batches=0", "trainer.limit_train_batches must be a number of batches from 1, or a part"),
        (
            "+trainer.overfit_batches=0.01",
            "trainer.overfit_batches=0.01: this part of the 1309 training images is less",
        ),
        ("+trainer.logger=false", "trainer.logger cannot be set: choose loggers with the group logger"),
        ("+trainer.callbacks=[]", "trainer.callbacks cannot be set: add callbacks to the group callbacks"),
        ("+trainer.check_val_every_n_epoch=1", "trainer.check_val_every_n_epoch cannot be set: validation runs"),
        ("+trainer.enable_checkpointing=false", "trainer.enable_checkpointing cannot be set: the test at the end"),
        ("+callbacks.x._target_=lightning.pytorch.callbacks.BatchSizeFinder", "callbacks.x: a run cannot use Batch"),
        (
            "+callbacks.x._target_=lightning.pytorch.callbacks.EarlyStopping +callbacks.x.monitor=val_bound",
            "callbacks.x: monitor=val_bound: no such number is logged; did you mean val/bound?",
        ),
        (
            "+callbacks.x._target_=lightning.pytorch.callbacks.ModelCheckpoint +callbacks.x.monitor=fid",
            "callbacks.x: monitor=fid: no such number is logged; ",
        ),
        ("+optimizer._args_=[3]", "optimizer: "),
        ("optimizer._target_=builtins.dict", "optimizer: "),
        ("grid._target_=builtins.len", "grid: len() takes exactly one argument"),
        ("+lr_schedule._args_=[3]", "lr_schedule: "),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must not be negative, got -1"),
        ("trainer.accelerator=abacus", "trainer: "),
        ("checkpoint_every_n_steps=0", "checkpoint_every_n_steps must be a whole number from 1, got 0"),
        ("callbacks.samples.count=0", "callbacks.samples: count must be at least 1, got 0"),
        ("resume=nowhere", "resume=nowhere: no run there"),
        ("trainer.accumulate_grad_batches=3", "data.batch_size=128"),
        ("schedule.timesteps=7", "schedule.timesteps: no such option; did you mean timesteps?"),
    ],
)
def test_an_option_gets_its_line(override: str, message: str, noising: Command, tmp_path: Path) -> None:
    outcome = noising("train", *override.split())
    assert outcome.code == 2, outcome
    assert outcome.err.startswith(f"error: {message}"), outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def _few(folder: Path) -> None:
    write_images(folder, np.zeros((20, 8, 8, 3), np.uint8))


def _broken(folder: Path) -> None:
    _few(folder)
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:40])


def _oblong(folder: Path) -> None:
    write_images(folder, (np.zeros((8, 9 if number == 7 else 8, 3), np.uint8) for number in range(20)))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda folder: None, (), ("data.root", "images")),
        (lambda folder: folder.mkdir(), (), ("data.root", "no image")),
        (_broken, ("data.batch_size=4",), ("7.png",)),
        (_oblong, ("data.batch_size=4", "data.crop=false"), ("7.png", "9x8")),
        (_few, (), ("data.batch_size=128", "lower it")),
    ],
    ids=["missing", "empty", "broken", "oblong", "few"],
)
def test_a_folder_of_images_gets_its_line(
    make: Callable[[Path], None],
    options: tuple[str, ...],
    words: tuple[str, ...],
    noising: Command,
    tmp_path: Path,
) -> None:
    make(tmp_path / "images")
    outcome = noising("train", "data=image_folder", "data.root=images", "data.resolution=8", *options)
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "runs").exists()


WITH_METRICS = [option for option in SMALL if option != "~metrics"]


@pytest.mark.parametrize(
    ("images", "classes", "why"),
    [
        (
            40,
            2,
            "metrics.split=train: image_folder has 35 of these images, but a Fréchet distance of 64 features needs",
        ),
        (100, 2, "metrics.n is the number of test images of image_folder by default, 9, but"),
        (40, 1, "metrics=fd: image_folder has a single class for the classifier"),
    ],
)
def test_images_that_are_too_few_to_measure_samples_by_are_trained_on(
    images: int, classes: int, why: str, noising: Command, tmp_path: Path
) -> None:
    for label in range(classes):
        folder = tmp_path / "images" / f"class{label}"
        folder.parent.mkdir(exist_ok=True)
        write_images(folder, np.zeros((images // classes, 8, 8, 3), np.uint8))
    data = ["data=image_folder", "data.root=images", "data.labels=true", "data.resolution=8", "data.batch_size=2"]
    short = ["trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.samples=null", "hydra.run.dir=run"]
    outcome = noising("train", *WITH_METRICS, *data, *short)
    assert outcome.code == 0, outcome.err
    assert f"samples are not measured: {why}" in (tmp_path / "run" / "train.log").read_text()
    assert "test/fd" not in Run(tmp_path / "run").summary
    outcome = noising("evaluate", "checkpoint=run", "sampler=ddim")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {why}")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("option", ["metrics=null", "callbacks.quality=null"])
def test_a_training_without_measuring_fits_no_classifier(
    option: str, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassifierDistance, "extractor", lambda self, data: pytest.fail("a classifier was fitted"))
    outcome = noising("train", *WITH_METRICS, option, "trainer.max_steps=1", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    summary = Run(tmp_path / "run").summary
    assert "test/bound" in summary
    assert "test/fd" not in summary


def test_nothing_to_measure_is_told(trained: Path, noising: Command) -> None:
    outcome = noising("evaluate", f"checkpoint={trained}", "sampler=ddim", "metrics=null")
    assert outcome.code == 2
    assert outcome.err == "error: sampler=NAME measures samples: choose a metric, metrics=fd, fid or fd_dinov2\n"
    outcome = noising("reference", "metrics=null")
    assert outcome.code == 2
    assert outcome.err.startswith("error: metrics is missing: choose metrics=fd")


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_checkpoint_that_is_none(name: str, noising: Command, tmp_path: Path) -> None:
    assert noising(name).err.startswith("error: checkpoint has no value: add checkpoint=...")
    assert noising(name).err.count("\n") == 1
    outcome = noising(name, "checkpoint=nowhere")
    assert outcome.err.startswith("error: checkpoint=nowhere: no run's folder or checkpoint file there")
    (tmp_path / "bad.ckpt").write_bytes(b"PK not a checkpoint")
    outcome = noising(name, "checkpoint=bad.ckpt")
    assert outcome.code == 2
    assert "bad.ckpt" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_group_of_other_commands_is_told_from_a_misspelling(noising: Command, tmp_path: Path) -> None:
    outcome = noising("latents", "checkpoint=RUN", "sampler=ddim")
    assert outcome.code == 2
    assert outcome.err == "error: sampler: this command takes no such group (it takes: grid, guidance, logger)\n"
    assert list(tmp_path.iterdir()) == []


class Lacking(Callback):
    """Like Lightning's DeviceStatsMonitor without psutil."""

    def setup(self, *args: Any, **options: Any) -> None:
        raise ModuleNotFoundError("`Lacking` needs `some_package`:\n pip install some_package")


def test_a_package_that_a_callback_lacks_is_one_line(noising: Command) -> None:
    lacking = "+callbacks.lacking._target_=tests.commands.test_train_mistakes.Lacking"
    outcome = noising("train", *SMALL, "hydra.run.dir=run", lacking)
    assert outcome.code == 2
    last = "error: `Lacking` needs `some_package`: pip install some_package"
    assert outcome.err.splitlines() == ["failed: run", last]
