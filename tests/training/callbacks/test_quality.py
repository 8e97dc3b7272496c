"""Samples measured in a run: the number of one process or two, and a training that does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from torchmetrics.image import KernelInceptionDistance

from noising.experiment import Experiment
from noising.metrics.measurement import sample_quality
from noising.metrics.quality import ImageMetric
from noising.runs.folder import Run
from noising.runs.results import Results
from noising.trained import load
from noising.training.callbacks.quality import QualityCheck
from noising.training.callbacks.samples import SampleGrid
from noising.training.checkpoints import load_checkpoint
from noising.training.ema import EMA
from noising.training.progress import StepProgress
from tests.helpers import SMALL, Command, read_table, run_command, write_greys
from tests.metrics.helpers import Brightness, Pixels

MEASURED = [*SMALL[:-1], "trainer.max_steps=10", "trainer.val_check_interval=10", "metrics.n=70", "metrics.repeats=2"]
CHECKED = ["callbacks.quality.every_n_steps=5", "callbacks.quality.keep_best=true"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same training without checks and with."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("plain", []), ("checked", CHECKED)):
        outcome = run_command("train", folder, *MEASURED, *more, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
        assert "Fréchet distance (FD)" in outcome.out
    return {name: Run(folder / name) for name in ("plain", "checked")}


def test_the_training_does_not_notice(runs: dict[str, Run]) -> None:
    plain, checked = (load_checkpoint(run.last_checkpoint)["state_dict"] for run in runs.values())
    assert all(torch.equal(plain[name], checked[name]) for name in plain)
    assert runs["plain"].summary["test/fd"] == runs["checked"].summary["test/fd"]


def test_checks_are_logged_with_their_cost_and_the_best_is_kept(runs: dict[str, Run]) -> None:
    run = runs["checked"]
    rows = {int(row["step"]): row for row in read_table(run.metrics) if row["val/fd"]}
    assert sorted(rows) == [5, 10]
    assert 0 < float(rows[5]["val/quality_seconds"]) < float(rows[10]["val/quality_seconds"])
    assert 0 < float(rows[10]["val/quality_share"]) < 1
    best = load_checkpoint(run.best_checkpoint.with_name("best_fd.ckpt"))
    assert best["global_step"] == min(rows, key=lambda step: float(rows[step]["val/fd"]))
    assert run.neighbours_image.exists()


def test_callbacks_can_follow_what_a_check_has_measured(noising: Command, tmp_path: Path) -> None:
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/fd, stopping_threshold: 1e9}"
    follow = "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: train/loss, dirpath: best}"
    options = (*MEASURED, *CHECKED, "trainer.val_check_interval=5", f"+callbacks.stop={stop}", "hydra.run.dir=run")
    outcome = noising("train", *options, f"+callbacks.follow={follow[:-1]}, every_n_train_steps: 5}}")
    assert outcome.code == 0, outcome.err
    assert "EarlyStopping: Stopping threshold reached: val/fd" in Run(tmp_path / "run").summary["ended"]
    assert list((tmp_path / "best").glob("*.ckpt"))


def test_epochs_are_counted_in_steps(runs: dict[str, Run]) -> None:
    """1,309 images in batches of 128: half an epoch is five steps."""
    config = OmegaConf.merge(
        load(runs["plain"].path).config,
        {"callbacks": {"quality": {"every_n_epochs": 0.5}, "samples": None}},  # None: without it
    )
    assert isinstance(config, DictConfig)
    trained = load(runs["plain"].path)
    callbacks = Experiment(config, trained.data).callbacks(Results(runs["plain"]))
    assert all(isinstance(callback, Callback) and not isinstance(callback, SampleGrid) for callback in callbacks)
    (check,) = (callback for callback in callbacks if isinstance(callback, QualityCheck))
    assert check.every == 5


def test_the_number_is_evaluates(runs: dict[str, Run], noising: Command, tmp_path: Path) -> None:
    same = ["sampler=ancestral", "sampler.steps=4", "metrics.n=70", "metrics.repeats=2", "device=cpu"]
    outcome = noising("evaluate", f"checkpoint={runs['plain'].path}", *same, "hydra.run.dir=again")
    assert outcome.code == 0, outcome.err
    again, trained = Run(tmp_path / "again").summary, runs["plain"].summary
    assert again["test/fd"] == pytest.approx(trained["test/fd"], rel=1e-6)
    cards = (summary["cards"]["test/fd"] for summary in (again, trained))
    evaluated, at_the_end = ({k: v for k, v in card.items() if k not in ("checkpoint", "sha256")} for card in cards)
    assert evaluated == at_the_end


class BrightnessCheck(QualityCheck):
    """By a sum: Lightning takes one callback of a class."""


class KernelCheck(QualityCheck):
    """By features."""


def test_two_processes_find_the_number_of_one(runs: dict[str, Run], tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        trained = load(runs["plain"].path)
        results = Results(Run(tmp_path / str(devices)))
        results.run.start({})
        experiment = Experiment(trained.config, trained.data)
        module = experiment.module
        module.load_state_dict(trained.checkpoint["state_dict"])
        kinds = (EMA, StepProgress, QualityCheck)
        callbacks = [callback for callback in experiment.callbacks(results) if isinstance(callback, kinds)]
        for callback in callbacks:
            if isinstance(callback, EMA):
                callback.load(trained.checkpoint)
            if isinstance(callback, QualityCheck):
                callback.batch_size = 40  # four batches, the last one smaller
                facts = (results, callback.sampler, callback.ema, callback.seed, callback.config)
        kernel = KernelInceptionDistance(feature=Pixels(), subsets=2, subset_size=50)
        # another's metrics, whose states are gathered by torchmetrics
        callbacks.append(BrightnessCheck(*facts, sample_quality(ImageMetric(Brightness(), n=100), trained.data)))
        callbacks.append(KernelCheck(*facts, sample_quality(ImageMetric(kernel, n=100), trained.data)))
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp_fork" if devices > 1 else "auto",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.test(module, trained.data, verbose=False)
        found.append({k: v for k, v in results.run.summary.items() if k.startswith("test/") and "quality" not in k})
    assert {"test/fd", "test/brightness", "test/kernel_inception_distance"} <= found[0].keys()
    assert found[0] == found[1]


def test_samples_that_are_not_finite_are_not_measured(
    noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = "noising.training.callbacks.quality.draw_images"
    monkeypatch.setattr(draw, lambda *given: torch.full((len(given[4]), *given[2]), torch.nan))
    assert noising("train", *MEASURED, "hydra.run.dir=run").code == 0
    assert "samples are not measured: 140 of 140 are not finite" in (tmp_path / "run" / "train.log").read_text()
    assert "test/fd" not in Run(tmp_path / "run").summary


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        (["callbacks.quality.every_n_steps=5", "callbacks.quality.every_n_epochs=1"], "one of every_n_steps and"),
        (
            ["callbacks.quality.every_n_steps=5", "callbacks.quality.n=30"],
            "callbacks.quality.n=30: a Fréchet distance of 64 features needs at least 65 samples",
        ),
        (["callbacks.quality.keep_best=true"], "keep_best=true needs checks to choose from: set every_n_steps"),
        (["metrics=fid"], "give metrics.inception_weights=PATH"),
        (["metrics.n=9"], "needs at least 65 samples"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    options: list[str], blamed: str, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    outcome = noising("train", *SMALL[:-1], *options, "hydra.run.dir=run")
    assert outcome.code == 2
    assert blamed in outcome.err
    assert not (tmp_path / "run").exists()


def refuse(*given: object, **options: object) -> None:
    raise OSError("no network")


OWN = """
import torch
from torchmetrics import Metric

from noising.metrics.quality import ClassifierDistance


class Mine(ClassifierDistance):
    distance = "fd_mine"

    def scores(self, logits, class_labels):
        return {"surprise": 1.5}


class Brightness(Metric):
    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, images):
        self.total += images.float().mean() * len(images)
        self.count += len(images)

    def compute(self):
        return self.total / self.count
"""


@pytest.mark.parametrize(
    ("name", "yaml", "title"),
    [
        ("fd_mine", "_target_: own_fd_mine.Mine\nn: 70\nrepeats: 2\n", "Fréchet distance (FD-MINE)"),
        ("brightness", "_target_: own_brightness.Brightness\n", "brightness"),
    ],
)
def test_a_metric_of_ones_own_is_one_class_and_one_yaml(
    name: str, yaml: str, title: str, noising: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From training with checks to the table of a sweep of samplers, its figure, and a comparison of runs."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"own_{name}.py").write_text(OWN)
    (tmp_path / "conf" / "metrics").mkdir(parents=True)
    (tmp_path / "conf" / "metrics" / "mine.yaml").write_text(yaml)
    own = ("--config-dir", "conf", "metrics=mine")
    trained = noising("train", *own, *SMALL[:-1], "trainer.max_steps=10", *CHECKED, "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    assert title in trained.out
    run = Run(tmp_path / "run")
    assert {f"test/{name}", f"val/{name}"} <= run.summary.keys()
    best = load_checkpoint(run.best_checkpoint.with_name(f"best_{name}.ckpt"))["global_step"]
    course = {int(row["step"]): float(row[f"val/{name}"]) for row in read_table(run.metrics) if row[f"val/{name}"]}
    assert best == (min if name == "fd_mine" else max)(course, key=course.__getitem__)
    options = ("checkpoint=run", "sampler=ddim", "device=cpu", "hydra.sweep.dir=sweep")
    swept = noising("evaluate", "-m", *own, *options, "sampler.steps=2,3")
    assert swept.code == 0, swept.err
    assert f"test/{name.replace('_', ' ')}" in swept.out.replace("\n", "")
    assert (tmp_path / "sweep" / "quality.png").exists()
    jobs = [str(job.parent) for job in sorted((tmp_path / "sweep").glob("*/summary.json"))]
    compared = noising("compare", *jobs, "vary=[sampler]", "hydra.run.dir=table")
    cells = next(line.split("│") for line in compared.out.splitlines() if f"│ test/{name} " in line)
    assert cells[-2].strip()
    assert "not ranked" not in cells[-2]


def test_unlabelled_data_is_trained_without_measuring(noising: Command, tmp_path: Path) -> None:
    write_greys(tmp_path / "images")
    images = ("data=image_folder", "data.root=images", "data.resolution=8", "data.batch_size=4")
    outcome = noising("train", *SMALL[:-1], *images, "trainer.max_steps=2", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert (
        "no labels for the classifier in whose features samples are measured"
        in (tmp_path / "run" / "train.log").read_text()
    )
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").metrics.repeats == 3
