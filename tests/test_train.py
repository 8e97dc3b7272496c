"""The main job from the command line to the run's folder, on a network small enough for a second."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import noising as package
from noising.commands.tables import print_summary
from noising.diffusion.drawing import draw_images
from noising.errors import ConfigError
from noising.plots.likelihood import read_bins
from noising.runs.folder import Run
from tests.conftest import SMALL, Outcome, run_command

Command = Callable[..., Outcome]


def _rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


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


def test_bound_by_step_adds_up_to_the_steps_term(trained: Path) -> None:
    with open(trained / "bound_by_step.csv") as file:
        rows = list(csv.DictReader(file))
    steps = sum(
        (int(row["last_step"]) - int(row["first_step"]) + 1) * float(row["bits_per_dim_per_step"]) for row in rows
    )
    summary = Run(trained).summary
    assert steps == pytest.approx(summary["test/steps"] + summary["test/decoder"])
    assert float(rows[0]["rate"]) == pytest.approx(summary["test/steps"] + summary["test/prior"])


def test_metrics_are_logged_by_optimizer_step(trained: Path) -> None:
    rows = _rows(trained)
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    assert [row["step"] for row in rows if row["val/bound"]] == ["10", "20"]
    for row in rows:
        quartiles = [float(row[f"train/loss_q{quarter}"]) for quarter in (1, 2, 3, 4)]
        # low-discrepancy times put as many images into each quartile
        assert float(row["train/loss"]) == pytest.approx(np.mean(quartiles), rel=1e-5)


def test_load_gives_the_averaged_weights_that_drew_the_samples(trained: Path) -> None:
    run = package.load(trained)
    assert (run.step, run.config.timesteps) == (20, 1000)
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    weights = run.denoiser.state_dict()
    assert all(torch.equal(weights[name], average) for name, average in checkpoint["ema"]["weights"].items())
    assert any(not torch.equal(weights[name], checkpoint["state_dict"][f"denoiser.{name}"]) for name in weights)
    from noising.config.theory import build_sampler

    images = draw_images(run.denoiser, build_sampler(run.config, 1000), (1, 8, 8), run.config.seed, range(9))
    with Image.open(trained / "samples.png") as grid:
        pixels = np.asarray(grid)[9::18, 9::18]  # the middle of every enlarged pixel
    first = run.data.to_8bit(run.data.unscale(images[0]))[0].numpy()
    np.testing.assert_array_equal(pixels[1:9, 1:9], first)


def test_load_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run's folder or checkpoint file there"):
        package.load(tmp_path / "nothing")


def test_resume_of_a_finished_run_trains_no_more(trained: Path, noising: Command) -> None:
    before = (trained / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    outcome = noising("train", f"resume={trained}")
    assert outcome.code == 0
    assert "bits/dim" in outcome.out
    assert (trained / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_sampling_and_validation_do_not_change_training(trained: Path, noising: Command, tmp_path: Path) -> None:
    quiet = ["callbacks.samples.every_n_steps=0", "trainer.val_check_interval=20", "bound.times=4", "seed=0"]
    assert noising("train", *SMALL, *quiet, "hydra.run.dir=quiet").code == 0
    one = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    two = torch.load(tmp_path / "quiet" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_evaluate_measures_again_what_the_run_measured(trained: Path, noising: Command, tmp_path: Path) -> None:
    outcome = noising(
        "evaluate",
        f"checkpoint={trained}",
        "bound=stratified",
        "bound.times=8",
        "hydra.run.dir=again",
        "trainer.accelerator=cpu",
    )
    assert outcome.code == 0, outcome.err
    assert "bound on -log p(x)" in outcome.out
    before, after = Run(trained).summary, Run(tmp_path / "again").summary
    for name in ("test/bound", "test/bound_mc_se", "test/prior", "test/decoder"):
        assert after[name] == before[name]
    assert after["cards"]["test/bound"]["step"] == 20


def test_evaluate_shows_the_gap_between_splits(trained: Path, noising: Command, tmp_path: Path) -> None:
    """The default evaluation: adaptive, as sure as it was asked to be, of test and training images."""
    outcome = noising("evaluate", f"checkpoint={trained}", "bound.stderr=0.02", "hydra.run.dir=both")
    assert outcome.code == 0, outcome.err
    run = Run(tmp_path / "both")
    for split, images in (("test", 360), ("train", 1309)):
        assert run.summary[f"{split}/bound_mc_se"] == pytest.approx(0.02, rel=0.6)
        card = run.summary["cards"][f"{split}/bound"]
        assert (card["images"], card["estimator"], card["stderr"]) == (images, "Adaptive", 0.02)
        assert card["evaluations"] < 1000 * images / 20
        assert f"{card['evaluations']:,} network evaluations" in outcome.out
    # the exact terms agree with the run's own
    assert run.summary["test/prior"] == Run(trained).summary["test/prior"]
    assert {row.split for row in read_bins(run.bound_by_step)} == {"test", "train"}
    for figure in (run.bound_by_step_figure, run.bound_by_log_snr_figure, run.rate_distortion_figure):
        assert figure.stat().st_size > 5000
    refused = noising("evaluate", f"checkpoint={trained}", "splits=[night]")
    assert (refused.code, refused.err.count("\n")) == (2, 1)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(trained: Path, noising: Command, tmp_path: Path) -> None:
    """The plan is one, whoever makes its draws: equal to rounding, and every image counts once."""
    import subprocess
    import sys

    script = Path(__file__).resolve().parents[1] / "scripts" / "evaluate.py"
    options = [f"checkpoint={trained}", "bound.stderr=0.3", "trainer.accelerator=cpu"]
    command = [sys.executable, str(script), *options, "trainer.devices=2", "hydra.run.dir=two"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert noising("evaluate", *options, "hydra.run.dir=one").code == 0
    one, two = (Run(tmp_path / name).summary for name in ("one", "two"))
    for split in ("test", "train"):
        for name in ("bound", "bound_mc_se", "bound_image_se", "prior", "steps", "decoder"):
            assert two[f"{split}/{name}"] == pytest.approx(one[f"{split}/{name}"], rel=1e-5, abs=1e-12)
        cards = [summary["cards"][f"{split}/bound"] for summary in (one, two)]
        assert cards[0]["images"] == cards[1]["images"]
        assert cards[0]["evaluations"] == cards[1]["evaluations"]


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
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
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
    import subprocess
    import sys

    train = Path(__file__).resolve().parents[1] / "train.py"
    command = [sys.executable, str(train), *SMALL, "trainer.devices=2", "hydra.run.dir=two"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    two = Run(tmp_path / "two")
    assert two.summary["cards"]["test/bound"]["images"] == 360
    # the same times and images, other noise: a bound as good, within the noise of so short a training
    assert two.summary["test/bound"] == pytest.approx(Run(trained).summary["test/bound"], rel=0.05)
    assert [row["step"] for row in _rows(two.path)] == ["5", "10", "15", "20"]


def test_sweep_leaves_a_complete_run_for_each_job(tmp_path: Path) -> None:
    options = (*SMALL, "trainer.max_steps=5", "trainer.val_check_interval=5", "hydra.sweep.dir=sweep")
    outcome = run_command("train", tmp_path, "-m", *options, "schedule=linear,cosine")
    assert outcome.code == 0, outcome.err
    jobs = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert jobs == ["0_schedule=linear", "1_schedule=cosine"]
    assert {Run(tmp_path / "sweep" / job).status for job in jobs} == {"finished"}
    with open(tmp_path / "sweep" / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["schedule"] for row in rows] == ["linear", "cosine"]
    assert float(rows[0]["test/bound"]) == Run(tmp_path / "sweep" / jobs[0]).summary["test/bound"]


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_a_spread_that_was_not_seen_is_no_error_of_zero(
    spread: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.write({"test/bound": 3.5, "test/bound_mc_se": 0.4, "test/bound_image_se": spread})
    print_summary(run)
    said = capsys.readouterr().out
    assert ("is lost in the Monte Carlo error" in said) == (spread == 0)
    assert ("0.0200" in said, "0.0000" in said) == (spread > 0, False)
