"""The main job from the command line to the run's folder, on a network small enough for a second."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noising.runs.folder import Run
from noising.training.module import DiffusionModule
from tests.helpers import AS_TRAINED, SMALL, Command, read_table, run_command, run_script, write_images


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    run = Run(trained)
    assert run.status == "finished"
    for path in (
        run.config_file,
        run.environment_file,
        run.last_checkpoint,
        run.best_checkpoint,
        run.metrics,
    ):
        assert path.stat().st_size > 0
    assert run.config["schedule"]["_target_"] == "noising.diffusion.schedules.Cosine"
    assert sorted(path.name for path in run.samples.iterdir()) == ["step_000010.png", "step_000020.png"]
    with Image.open(run.samples_image) as grid, Image.open(run.reverse_process) as animation:
        assert grid.size == (504, 504)  # 3x3 images of 8 pixels, gaps of 1, enlarged 18 times
        assert animation.n_frames == 4  # the sampler's steps
    with Image.open(run.bound_by_step_figure) as figure:
        assert figure.size == (1036, 616)


def test_summary_holds_the_bound_term_by_term_with_card_and_baselines(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    terms = [summary[f"test/{name}"] for name in ("prior", "steps", "decoder")]
    assert summary["test/bound"] == pytest.approx(sum(terms))
    assert 0 < summary["test/bound_mc_se"] < summary["test/bound"]
    assert summary["test/uniform_baseline"] == pytest.approx(np.log2(17))
    assert summary["test/histogram_baseline"] == pytest.approx(2.436, abs=1e-3)
    card = summary["cards"]["test/bound"]
    assert (card["images"], card["timesteps"], card["evaluations"]) == (360, 1000, 360 * 8)
    with Image.open(trained / "figures" / "learning_curves.png") as figure:
        assert figure.size == (1400, 588)
    assert (card["step"], card["weights"]) == (
        20,
        {"ema_decay": card["weights"]["ema_decay"], "ema_updates": 20},
    )


def test_the_card_says_what_the_class_is_worth(trained: Path, noising: Command) -> None:
    """Told to the network, each of ten classes saves at most log2 10 bits of an image of 64 pixels."""
    assert Run(trained).summary["cards"]["test/bound"]["bits_of_the_class"] == 0
    outcome = noising("train", *SMALL, "trainer.max_steps=2", "callbacks.samples=null", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "the bits are given the class, which would cost at most 0.052 more" in outcome.out


def test_bound_by_step_adds_up_to_the_steps_term(trained: Path) -> None:
    rows = read_table(trained / "bound_by_step.csv")
    steps = sum(
        (int(row["last_step"]) - int(row["first_step"]) + 1) * float(row["bits_per_dim_per_step"]) for row in rows
    )
    summary = Run(trained).summary
    assert steps == pytest.approx(summary["test/steps"] + summary["test/decoder"])
    assert float(rows[0]["rate"]) == pytest.approx(summary["test/steps"] + summary["test/prior"])


def test_metrics_are_logged_by_optimizer_step(trained: Path) -> None:
    rows = read_table(trained / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    assert [row["step"] for row in rows if row["val/bound"]] == ["10", "20"]
    for row in rows:
        quartiles = [float(row[f"train/loss_q{quarter}"]) for quarter in (1, 2, 3, 4)]
        # low-discrepancy times put as many images into each quartile
        assert float(row["train/loss"]) == pytest.approx(np.mean(quartiles), rel=1e-5)


def test_resume_of_a_finished_run_trains_no_more(trained: Path, noising: Command) -> None:
    before = (trained / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    outcome = noising("train", f"resume={trained}")
    assert outcome.code == 0
    assert "bits/dim" in outcome.out
    assert (trained / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_sampling_and_validation_do_not_change_training(trained: Path, noising: Command, tmp_path: Path) -> None:
    quiet = ["callbacks.samples.every_n_steps=0", "trainer.val_check_interval=20", "bound.times=4", "seed=0"]
    assert noising("train", *AS_TRAINED, *quiet, "hydra.run.dir=quiet").code == 0
    one = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    two = torch.load(tmp_path / "quiet" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_colour_images_train_and_sample(noising: Command, tmp_path: Path) -> None:
    outcome = noising(
        "train",
        *SMALL,
        "data=photo_patches",
        "data.batch_size=8",
        "trainer.max_steps=10",
        "hydra.run.dir=run",
    )
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "run" / "samples.png") as grid:
        assert np.asarray(grid).shape[2] == 3
    assert Run(tmp_path / "run").summary["test/uniform_baseline"] == 8


def test_folder_of_images(noising: Command, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    write_images(tmp_path / "images", generator.integers(0, 256, (40, 20, 16, 3), dtype=np.uint8))
    options = (
        "data=image_folder",
        "data.root=images",
        "data.resolution=8",
        "data.batch_size=8",
        "hydra.run.dir=run",
    )
    outcome = noising("train", *SMALL, *options, "trainer.max_steps=10")
    assert outcome.code == 0, outcome.err
    assert Run(tmp_path / "run").summary["cards"]["test/bound"]["data"] == "image_folder"


@pytest.mark.slow
def test_two_processes_train_as_one_and_count_every_image_once(trained: Path, tmp_path: Path) -> None:
    outcome = run_script("train.py", tmp_path, *AS_TRAINED, "trainer.devices=2", "hydra.run.dir=two")
    assert outcome.code == 0, outcome.err
    two = Run(tmp_path / "two")
    assert two.summary["cards"]["test/bound"]["images"] == 360
    # the same times and images, other noise: a bound as good, within the noise of so short a training
    assert two.summary["test/bound"] == pytest.approx(Run(trained).summary["test/bound"], rel=0.05)
    assert [row["step"] for row in read_table(two.metrics)] == ["5", "10", "15", "20"]


def test_epochs_are_steps_and_more_of_them_go_on(noising: Command, tmp_path: Path) -> None:
    # 1,309 images in batches of 655: two epochs are 3.997 steps, three 5.995
    words = ["data.batch_size=655", "callbacks.samples=null", "lr_schedule.warmup=0", "hydra.run.dir=run"]
    small = [option for option in SMALL if "max_steps" not in option]
    outcome = noising("train", *small, *words, "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.err
    assert "4 steps of 655 images" in outcome.out
    outcome = noising("train", "resume=run", "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.err
    run = Run(tmp_path / "run")
    assert run.summary["cards"]["test/bound"]["step"] == 6
    (rate,) = (float(row["train/lr"]) for row in read_table(run.metrics) if row["train/lr"])  # of step 5
    assert rate == pytest.approx(8e-3 * 0.5 * (1 + np.cos(np.pi * 5 / 6)))  # a cosine over 6 steps


@pytest.mark.parametrize("option", ["overfit_batches=1", "limit_train_batches=0.1"])
def test_a_limited_training_sees_the_first_batch_alone(
    option: str, noising: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    step = DiffusionModule.training_step

    def noted(module: DiffusionModule, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        seen.append(batch["index"].tolist())
        return step(module, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", noted)
    words = ["trainer.max_steps=3", "trainer.accumulate_grad_batches=2", "data.batch_size=120", f"+trainer.{option}"]
    outcome = noising("train", *SMALL, *words, "callbacks.samples=null")
    assert outcome.code == 0, outcome.err
    assert "120 of 1309 images" in outcome.out
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert len({*seen[0], *seen[1]}) == 120


def test_no_progress_is_shown_where_none_is_wanted(noising: Command) -> None:
    words = ("trainer.max_steps=1", "callbacks.samples=null", "+trainer.enable_progress_bar=false")
    outcome = noising("train", *SMALL, *words)
    assert outcome.code == 0
    assert outcome.err == ""


def test_sweep_leaves_a_complete_run_for_each_job(tmp_path: Path) -> None:
    options = (*SMALL, "trainer.max_steps=5", "trainer.val_check_interval=5", "hydra.sweep.dir=sweep")
    outcome = run_command("train", tmp_path, "-m", *options, "schedule=linear,cosine")
    assert outcome.code == 0, outcome.err
    jobs = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert jobs == ["0_schedule-linear", "1_schedule-cosine"]
    assert {Run(tmp_path / "sweep" / job).status for job in jobs} == {"finished"}
    rows = read_table(tmp_path / "sweep" / "sweep.csv")
    assert [row["schedule"] for row in rows] == ["linear", "cosine"]
    assert float(rows[0]["test/bound"]) == Run(tmp_path / "sweep" / jobs[0]).summary["test/bound"]


def test_an_early_end_says_why_and_lightning_is_heard(noising: Command, tmp_path: Path) -> None:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    lightning = logging.getLogger("lightning.pytorch")
    lightning.addHandler(handler)
    early = (
        "_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/bound, stopping_threshold: 9, verbose: true"
    )
    options = (f"+callbacks.early={{{early}}}", "+trainer.profiler=simple", "hydra.run.dir=run")
    try:
        outcome = noising("train", *SMALL, *options)
    finally:
        lightning.removeHandler(handler)
    assert outcome.code == 0, outcome.err
    ended = Run(tmp_path / "run").summary["ended"]
    assert ended.startswith("at step 10 of 20: EarlyStopping: Stopping threshold reached: val/bound")
    assert outcome.out.splitlines()[-1] == f"training ended {ended}"
    assert any("Profiler Report" in words for words in heard)
    assert any(words.startswith("Stopping threshold reached") for words in heard)
    noise = ("GPU available", "`Trainer.fit` stopped", "Restor", "Loaded model weights", "`weights_only`")
    assert not [words for words in heard if words.startswith(noise)]
    # more steps: it goes on, and is then ended by nothing but them
    more = noising("train", *SMALL, "trainer.max_steps=12", "hydra.run.dir=run", "resume=true")
    assert more.code == 0, more.err
    assert "ended" not in Run(tmp_path / "run").summary


def test_a_time_limit_is_a_reason(noising: Command, tmp_path: Path) -> None:
    outcome = noising(
        "train", *SMALL, "trainer.max_steps=100000", "+trainer.max_time={seconds: 1}", "hydra.run.dir=run"
    )
    assert outcome.code == 0, outcome.err
    assert Run(tmp_path / "run").summary["ended"].endswith("the time limit (trainer.max_time) is reached")
