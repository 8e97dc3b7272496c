"""The commands as functions, and a run as an object, for notebooks and scripts: `nz.train`, `nz.load`, `run.sample`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from noising.cli.calls import call, composed
from noising.commands.devices import find_device
from noising.config.instantiate import make
from noising.config.leaves import leaves
from noising.config.words import quoted
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.likelihood.estimators import BoundEstimator
from noising.diffusion.likelihood.meter import BoundEstimate, evaluate_bound
from noising.diffusion.samplers import Sampler
from noising.errors import ConfigError
from noising.plots.images import ImageArray
from noising.randomness import generators_as_before
from noising.runs import folder as runs
from noising.runs.trust import allowing

with generators_as_before():  # rich draws from `random` when it is imported
    from noising.commands.sample_jobs import SampleJob
    from noising.commands.tables import evaluations_bar
    from noising.data.image_data import SPLITS, ImageData
    from noising.trained import TrainedRun


class Result:
    """The numbers and pictures that a command has left in its folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()  # whatever becomes of the current folder

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of summary.json by name, with their cards (`summary["cards"]`) and the run's status."""
        return runs.Run(self.folder).summary

    @property
    def metrics(self) -> Any:
        """The rows of metrics.csv, one a step: a pandas DataFrame where pandas is installed, else a list of dicts."""
        file = runs.Run(self.folder).metrics
        if not file.is_file():
            raise ConfigError(f"{self.folder} holds no metrics.csv: it is written when a run ends")
        try:
            import pandas
        except ImportError:
            with file.open(newline="", encoding="utf-8") as rows:
                return [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(rows)]
        return pandas.read_csv(file)

    @property
    def figures(self) -> dict[str, Image.Image]:
        """The pictures of the run by name, such as "samples" and "learning_curves"."""
        files = [*sorted(self.folder.glob("*.png")), *sorted(self.folder.glob("figures/*.png"))]
        return {file.stem: _picture(file) for file in files}

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.summary.items() if name in ("status", "test/bound", "test/fd")}
        numbers = [f"{name} {value:.4g}" for name, value in shown.items() if isinstance(value, float)]
        here = Path.cwd()
        place = str(self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder)
        return f"{type(self).__name__}({', '.join([place, *filter(None, [shown.get('status')]), *numbers])})"


class Run(Result):
    """A trained run: its averaged weights, its data, and what it has left in its folder."""

    def __init__(self, trained: TrainedRun, allow: str = "") -> None:
        """allow: names that the run's files may use, as in `load`."""
        super().__init__(runs.run_folder(trained.path))
        self._trained, self._allow = trained, allow
        self.path = trained.path.absolute()
        """The checkpoint file."""

    @property
    def step(self) -> int:
        """The optimizer steps taken."""
        return self._trained.step

    @property
    def config(self) -> DictConfig:
        """The config, resolved, that the run was started with."""
        return self._trained.config

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser with the averaged weights, in evaluation mode."""
        return self._trained.denoiser

    @property
    def data(self) -> ImageData:
        """The data set that the run was trained on; `data.test.pixels` is (N, C, H, W) uint8."""
        return self._trained.data

    def sample(
        self,
        n: int = 64,
        *overrides: str,
        sampler: str | Sampler = "ancestral",
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        class_label: int | None = None,
        device: str = "auto",
    ) -> ImageArray:
        """Draw n images, (n, H, W, C) uint8: image i depends on (seed, i) alone, and a notebook shows them.

        sampler: a choice of the group; a class of your own by its name, as "mine.Euler"; or a sampler with its steps,
        as nz.DDIM(steps=50). guidance: scale of classifier-free guidance; class_label: the class of all images, None
        for each in turn; overrides: other options of the command `sample`, such as "grid=karras" or "batch_size=256".
        Raises ConfigError for what cannot be used.
        """
        given = ("n", "seed", "device", "sampler", "class_label", *(("guidance",) if guidance is not None else ()))
        _require_others(overrides, given, ("checkpoint", "devices", "format", "hydra", "logger", "resume", "tags"))
        words = [f"n={n}", f"seed={seed}", f"device={device}"]
        if isinstance(sampler, str):
            words.append(f"sampler._target_={sampler}" if "." in sampler else f"sampler={sampler}")
        elif not isinstance(sampler, Sampler) or steps is not None:
            raise ConfigError("sampler: expected sampler='ddim', steps=50, or an object: nz.DDIM(steps=50)")
        words += [] if steps is None else [f"sampler.steps={steps}"]
        words += [] if guidance is None else ["guidance=classifier_free", f"guidance.scale={guidance}"]
        words += [] if class_label is None else [f"class_label={class_label}"]
        with allowing(self._allow):
            cfg = composed("sample", [*words, *overrides, self._checkpoint])
            job = SampleJob(cfg, self._trained, None if isinstance(sampler, str) else sampler)
        drawn = []
        with generators_as_before(), evaluations_bar(cfg.n * job.evaluations) as advance:
            for first in range(0, cfg.n, cfg.batch_size):
                batch = range(first, min(first + cfg.batch_size, cfg.n))
                cost = len(batch) * job.evaluations / job.sampler.steps
                drawn.append(job.draw(batch, job.devices[0], lambda *_, cost=cost: advance(cost)))
        images = job.data.to_8bit(torch.cat(drawn)).permute(0, 2, 3, 1).numpy()
        return ImageArray(images, job.classes if cfg.class_label is None else 0)

    def bound(
        self, split: str = "test", *overrides: str, stderr: float | None = None, device: str = "auto"
    ) -> BoundEstimate:
        """Estimate the bound of a split, in bits/dim, with its errors: the same number as `evaluate` gives.

        split: "test", "val" or "train"; stderr: the standard error over times and noise that the estimate shall have,
        by default 0.01; overrides: options of the group `bound`, such as "bound=exact". Raises ConfigError for what
        cannot be used.
        """
        if split not in SPLITS:
            raise ConfigError(f"split={split}: expected one of {', '.join(SPLITS)} as the first argument")
        for word in overrides:
            if not word.lstrip("+~").startswith(("bound=", "bound.")):
                raise ConfigError(f"{word}: expected an option of the bound, such as 'bound=exact'")
        words = [f"splits=[{split}]", *([] if stderr is None else [f"bound.stderr={stderr}"])]
        with allowing(self._allow):
            cfg = composed("evaluate", [*words, *overrides, self._checkpoint])
            estimator = make(cfg.bound, "bound", BoundEstimator)
        place = find_device(device)
        with generators_as_before():
            terms, images = self._trained.bound_terms(estimator.clip, place), self._trained.image_set(split, place)
            return evaluate_bound(terms, estimator, images, progress=evaluations_bar)

    def evaluate(self, *overrides: str) -> Result:
        """Run the command `evaluate` on this run: its bound, or with "sampler=NAME" the quality of its samples.

        overrides: options as on the command line. Raises UsageError for a mistake.
        """
        _require_others(overrides, (), ("checkpoint",))
        return Result(call("evaluate", [*overrides, self._checkpoint], self._allow))

    @property
    def _checkpoint(self) -> str:
        return f"checkpoint={quoted(str(self.path))}"


def train(*overrides: str, allow: str | Sequence[str] = "", config_dir: str | Path | None = None) -> Run:
    """Run the command `train` in this process, and return the run: `nz.train("schedule=linear", "seed=1")`.

    overrides: options as on the command line; allow: names of modules that a resumed run's files may use;
    config_dir: a folder of your own configs. Generators, threads, logs and Hydra are afterwards as they were. Raises
    UsageError for a mistake, in the words of the command line.
    """
    names = _joined(allow)
    trained = TrainedRun.load(call("train", overrides, names, config_dir), trusted=True)
    # what it names were these words, or has passed the gate
    named = {
        str(value).partition(".")[0]
        for path, value in leaves(trained.checkpoint["config"])
        if path.endswith("_target_")
    }
    return Run(trained, ",".join(filter(None, (names, *sorted(named - {"noising"})))))


def load(run: str | Path, allow: str | Sequence[str] = "") -> Run:
    """A trained run from its folder, its folder of checkpoints, or a checkpoint file.

    allow: names of modules whose classes its config may name besides noising's and your own, as "diffusers" or a list.
    Raises ConfigError if there is none, or if its config names others.
    """
    names = _joined(allow)
    with allowing(names):
        return Run(TrainedRun.load(run), names)


def _joined(allow: str | Sequence[str]) -> str:
    names = [allow] if isinstance(allow, str) else allow
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"allow={allow}: expected the name of a module, or a list of names")
    return ",".join(names)


def _require_others(overrides: Sequence[str], arguments: Sequence[str], elsewhere: Sequence[str]) -> None:
    """Raise ConfigError for an override of an option that is an argument, or that the call has no use for."""
    for word in overrides:
        option = str(word).lstrip("+~").partition("=")[0]
        if option in arguments:
            raise ConfigError(f"{word}: give it as the separate argument {option}=...")
        if option in elsewhere or option.partition(".")[0] in elsewhere:
            raise ConfigError(f"{word}: this call has no option {option}; only the command line has it")


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        opened.load()
        return opened
