"""Train and measure every row that README.md and the pages beside this file show, fill their tables, copy the pictures.

    python docs/rows.py rows [jobs=2] [mnist=FOLDER] [only=small]

A job is a command with a folder of its own below `rows`; those that are finished are not done again, so that the script
can be stopped and goes on. Each takes one thread, and `jobs` of them run at once. A table is written when all of its
jobs are done. Numbers within sentences stay as they are: their new values are to be read in `rows`. Without
mnist=FOLDER, as torchvision lays it out, the jobs of MNIST are left out. With only=WORD, the jobs alone are done whose
names begin with it, and no picture is copied.
"""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from noising.data.digits import Digits
from noising.plots.grids import image_grid
from noising.trained import load

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
IMAGES = ROOT / "docs" / "images"
RECIPES = (
    *("ddpm", "iddpm", "analytic_dpm", "v_prediction", "zero_terminal_snr", "vdm", "vdm_plus_plus", "edm"),
    *("edm2", "rectified_flow"),
)
FAMILIES = ("ddpm", "iddpm", "vdm", "edm", "edm2", "dit", "uvit", "jit", "rectified_flow")
"""Recipes that are trained small, side by side."""
SMALL = {"digits": [], "patches": ["data=photo_patches", "+data.resolution=8", "metrics.n=360"]}
"""The images that they are trained on, and the options for them."""
SMALL_STEPS = "trainer.max_steps=600"
LOSSES = {
    "hybrid, learned range": [],
    "bound with loss-aware times, learned range": ["objective=variational_bound", "times=loss_aware"],
    "simplified, fixed large": ["objective=regression", "variance=fixed_large"],
    "simplified, fixed small": ["objective=regression", "variance=fixed_small"],
}
SPACES = {"clean_image": "x", "epsilon": "ε", "velocity": "v"}
"""The spaces that `experiment=nine` predicts and compares in, by the choice of parameterization."""
KINDS = {"ancestral": "Ancestral", "ddim": "DDIM", "heun": "Heun", "dpmpp_2m": "DPMPP2M"}
"""Choices of the samplers, and their classes."""
QUANTILE = 4.302653
"""Student's t of a 95% interval from three seeds."""
STEPS = (5, 10, 20, 50, 100)
SCALES = ("0", "0.5", "1", "1.5", "2", "3", "5", "8")
NEEDED = re.compile(r"{(\w+)}")
"""The folder of another job, in an option."""
PICTURES = {
    "verification": "verify/verification",
    "weightings": "weightings/weightings",
    "bound_by_step": "plain/figures/bound_by_step",
    "learning_curves": "plain/figures/learning_curves",
    "neighbours": "plain/neighbours",
    "bound_by_log_snr": "both_splits/figures/bound_by_log_snr",
    "rate_distortion": "both_splits/figures/rate_distortion",
    "quality": "matrix/quality",
    "guidance": "guidance/quality",
    "path": "path/path",
    "classes": "classes/samples",
    "interpolation": "latents/interpolation",
    "reconstruction": "latents/reconstruction",
}
"""Pictures of the pages, and the files of jobs that they are copies of."""
SAMPLES_BESIDE_REAL = "digits"
"""The picture that is made of the samples of the job `default` and of real images."""
Summary = dict[str, Any]
Job = tuple[str, list[str]]
"""The script and its options."""


def jobs_of(mnist: str | None) -> dict[str, Job]:
    """All jobs by the name of their folder; {NAME} in an option is the folder of a job before it."""
    fixed = ["threads=1", "bound=stratified"]
    evaluate, plain, sample = "scripts/evaluate.py", "checkpoint={plain}", "scripts/sample.py"
    jobs: dict[str, Job] = {
        "verify": ("scripts/verify.py", ["experiment=edm"]),
        "weightings": ("scripts/weightings.py", []),
        "default": ("train.py", ["threads=1"]),
        "plain": ("train.py", ["experiment=null", "threads=1"]),
        "class_conditional": ("train.py", ["experiment=class_conditional", "threads=1"]),
    }
    jobs |= {name: ("train.py", [f"experiment={name}", *fixed]) for name in RECIPES}
    sweep = [plain, f"sampler={','.join(KINDS)}", f"sampler.steps={','.join(map(str, STEPS))}"]
    guided = ["checkpoint={class_conditional}", "sampler=ddim", "sampler.steps=20", "guidance=classifier_free"]
    drawn = ["n=100", "sampler=ddim", "sampler.steps=50", "guidance=classifier_free", "guidance.scale=1.5"]
    jobs |= {
        "both_splits": (evaluate, [plain, "bound.stderr=0.01"]),
        "exact": (evaluate, [plain, "bound=exact", "splits=[test]"]),
        "matrix": (evaluate, ["--multirun", *sweep]),
        "guidance": (evaluate, ["--multirun", *guided, f"guidance.scale={','.join(SCALES)}"]),
        "nine": ("train.py", ["--multirun", "experiment=nine", "seed=0,1,2", "trainer.max_steps=400", *fixed]),
        "flow": ("scripts/likelihood.py", [plain, "images=64", "solver=runge_kutta4"]),
        "flow_late": ("scripts/likelihood.py", [plain, "images=64", "solver=runge_kutta4", "start_time=0.03"]),
        "latents": ("scripts/latents.py", [plain]),
        "latents_even": ("scripts/latents.py", [plain, "grid=uniform_log_snr", "steps=[50,100,200,400,800]"]),
        "path": (sample, [plain, "n=64", "sampler=ddim", "sampler.steps=50"]),
        "classes": (sample, ["checkpoint={class_conditional}", *drawn]),
    }
    for number, options in enumerate(LOSSES.values()):
        for seed in range(3):
            if (number, seed) != (0, 0):  # a recipe
                jobs[f"loss{number}_seed{seed}"] = ("train.py", ["experiment=iddpm", f"seed={seed}", *options, *fixed])
    for data, options in SMALL.items():
        for name in FAMILIES:
            finer = ["schedule.log_snr_max=13.3"] if (data, name) == ("patches", "vdm") else []  # 256 grey levels
            for seed in range(3):
                words = [f"experiment={name}", f"seed={seed}", SMALL_STEPS, *options, *finer, *fixed]
                jobs[f"small_{data}_{name}_seed{seed}"] = ("train.py", words)
    jobs["paired"] = ("scripts/compare.py", ["{loss0_seed1}", "{loss1_seed1}", "paired=true"])
    if mnist:
        size = ["schedule=linear", "model.width=16", "trainer.max_steps=500", "ema.decay=0.99", "metrics=null"]
        jobs["mnist"] = ("train.py", ["experiment=mnist", f"data.root={mnist}", *size, "threads=1"])
        jobs["mnist_bound"] = ("scripts/benchmark.py", ["bound", "checkpoint={mnist}"])
    return jobs


def run(rows: Path, name: str, job: Job, started: dict[str, Future[None]]) -> None:
    """Do a job, if it is not done, when those that it needs are; its output goes to NAME.log."""
    script, options = job
    done = rows / f"{name}.done"
    if done.exists():
        return
    words = [NEEDED.sub(lambda found: str(rows / found[1]), option) for option in options]
    for need in NEEDED.findall(" ".join(options)):
        started[need].result()
    place = f"hydra.{'sweep' if '--multirun' in options else 'run'}.dir={rows / name}"
    resume = ["resume=true"] if script == "train.py" and (rows / name / "config.yaml").exists() else []
    command = [sys.executable, str(ROOT / script), *words, place, *resume]
    with (rows / f"{name}.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, env=environment).returncode
    if code:
        raise SystemExit(f"{name}: {' '.join(command)} ended with {code}: see {rows / name}.log")
    done.touch()
    print(f"{name}: done", flush=True)


def summary(rows: Path, name: str) -> Summary:
    """The numbers of a job; FileNotFoundError if it is not done."""
    (rows / f"{name}.done").stat()
    found: Summary = json.loads((rows / name / "summary.json").read_text(encoding="utf-8"))
    return found


class Tables:
    """The tables of pages of Markdown, whose cells are set by the headings of column and row."""

    def __init__(self, pages: Sequence[Path]) -> None:
        self._pages = {page: page.read_text(encoding="utf-8").splitlines() for page in pages}

    def set(self, table: str, row: str, column: int, value: str) -> None:
        """Set a cell: the table by what its first line holds, the row by what it holds, the column counted from 0.

        Raises LookupError if no page has that table, or the table has no such row.
        """
        for lines in self._pages.values():
            first = next((i for i, line in enumerate(lines) if line.startswith("|") and table in line), None)
            if first is not None:
                break
        else:
            raise LookupError(f"no page has a table with {table}")
        place = first
        while row not in lines[place]:
            place += 1
            if not lines[place].startswith("|"):
                raise LookupError(f"the table with {table} has no row with {row}")
        cells = lines[place].split("|")[1:-1]
        cells[column] = f" {value} "
        lines[place] = f"|{'|'.join(cells)}|"

    def write(self) -> None:
        """Write all pages."""
        for page, lines in self._pages.items():
            page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def jobs_in(rows: Path, sweep: str) -> list[Summary]:
    """The numbers of a sweep's jobs; FileNotFoundError if it is not done."""
    (rows / f"{sweep}.done").stat()
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((rows / sweep).glob("*/summary.json"))]


def bound(found: Summary, digits: int = 3) -> str:
    """The bound of the test images with its Monte Carlo error."""
    return f"{found['test/bound']:.{digits}f} ± {found['test/bound_mc_se']:.{digits}f}"


def fd(found: Summary) -> str:
    """The Fréchet distance with its error."""
    return f"{found['test/fd']:.2f} ± {found['test/fd_mc_se']:.2f}"


def fill_recipes(rows: Path, tables: Tables) -> None:
    for name in RECIPES:
        value = bound(summary(rows, name))
        tables.set("| recipe | command |", f"experiment={name}`", 2, value)
        tables.set("| recipe | schedule", f"experiment={name}`", 7, value)


def over_seeds(values: Sequence[float], digits: int) -> str:
    """The mean over seeds with its standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{np.mean(values):,.{digits}f} ± {error:,.{digits}f}"


def parameters(rows: Path, name: str) -> int:
    """The number of parameters of a job's network."""
    return sum(parameter.numel() for parameter in load(str(rows / name)).denoiser.model.parameters())


def fill_small(rows: Path, tables: Tables) -> None:
    """Mean and standard error over the seeds, of each family on each kind of images."""
    for name in FAMILIES:
        for place, data in enumerate(SMALL):
            found = [summary(rows, f"small_{data}_{name}_seed{seed}") for seed in range(3)]
            for column, (number, digits) in enumerate((("test/bound", 3), ("test/fd", 2)), 1 + 2 * place):
                value = over_seeds([one[number] for one in found], digits)
                tables.set("| family |", f"experiment={name}`", column, value)
        tables.set("| family |", f"experiment={name}`", 5, f"{parameters(rows, f'small_digits_{name}_seed0'):,}")
        rate = np.median(
            [summary(rows, f"small_digits_{name}_seed{seed}")["train/images_per_second"] for seed in range(3)]
        )
        tables.set("| family |", f"experiment={name}`", 6, f"{rate:,.0f}")


def fill_losses(rows: Path, tables: Tables) -> None:
    for number, loss in enumerate(LOSSES):
        found = [summary(rows, f"loss{number}_seed{seed}" if number + seed else "iddpm") for seed in range(3)]
        for seed, one in enumerate(found):
            tables.set("loss, reverse variance", f"| {loss} |", 1 + seed, f"{one['test/bound']:.4f}")
        mean = sum(one["test/bound"] for one in found) / 3
        tables.set("loss, reverse variance", f"| {loss} |", 4, f"{mean:.3f}")


def fill_nine(rows: Path, tables: Tables) -> None:
    """The bound of each seed, and its difference to that of ε compared as ε, with the interval over the seeds."""
    (rows / "nine.done").stat()
    with (rows / "nine" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        jobs = list(csv.DictReader(file))
    names = ("parameterization", "parameterization@objective.compared")
    bounds = {(*(SPACES[job[name]] for name in names), int(job["seed"])): float(job["test/bound"]) for job in jobs}
    for predicted in SPACES.values():
        for compared in SPACES.values():
            found = [bounds[predicted, compared, seed] for seed in range(3)]
            for seed, value in enumerate(found):
                tables.set("| predicted | compared |", f"| {predicted} | {compared} |", 2 + seed, f"{value:.3f}")
            if (predicted, compared) == ("ε", "ε"):
                continue
            differences = [value - bounds["ε", "ε", seed] for seed, value in enumerate(found)]
            mean, half = sum(differences) / 3, QUANTILE * float(np.std(differences, ddof=1)) / math.sqrt(3)
            tables.set("| predicted | compared |", f"| {predicted} | {compared} |", 5, f"{mean:+.3f}")
            interval = f"{mean - half:+.3f} to {mean + half:+.3f}"
            tables.set("| predicted | compared |", f"| {predicted} | {compared} |", 6, interval)


def fill_bound(rows: Path, tables: Tables) -> None:
    both = summary(rows, "both_splits")
    for split, row in (("test", "360 test digits"), ("train", "1,309 training digits")):
        numbers = [f"{both[f'{split}/bound{end}']:.3f}" for end in ("", "_mc_se", "_image_se")]
        for kind in ("bound", "bound_population"):
            numbers.append(" to ".join(f"{both[f'{split}/{kind}_{end}']:.3f}" for end in ("low", "high")))
        for column, value in enumerate(numbers, 1):
            tables.set("bits/dim | value", f"| {row} |", column, value)


def fill_samplers(rows: Path, tables: Tables) -> None:
    for one in jobs_in(rows, "matrix"):
        sampler = one["cards"]["test/fd"]["sampler"]
        name = next(key for key, kind in KINDS.items() if sampler["_target_"].endswith(f".{kind}"))
        tables.set("FD, 3 × 360 samples", f"| `{name}`", 1 + STEPS.index(sampler["steps"]), fd(one))


def fill_guidance(rows: Path, tables: Tables) -> None:
    for one in jobs_in(rows, "guidance"):
        column = 1 + SCALES.index(f"{one['cards']['test/fd']['guidance']['scale']:g}")
        tables.set(
            "`guidance.scale` |", "shows the requested class", column, f"{100 * one['test/class_accuracy']:.1f}%"
        )
        tables.set("`guidance.scale` |", "| FD |", column, fd(one))
        tables.set("`guidance.scale` |", "| recall |", column, f"{one['test/recall']:.2f}")


def fill_quality(rows: Path, tables: Tables) -> None:
    found = summary(rows, "plain")
    pairs = {"precision, recall": ("precision", "recall"), "density, coverage": ("density", "coverage")}
    for row, names in ({"Fréchet distance (FD)": ("fd",)} | pairs | {"fraction nearer": ("memorized",)}).items():
        for column, end in enumerate(("", "_mc_se", "_baseline"), 1):
            value = ", ".join(f"{found[f'test/{name}{end}']:.3f}" for name in names)
            tables.set("| | value | ± Monte Carlo", row, column, value)


FILLS = (fill_recipes, fill_small, fill_losses, fill_nine, fill_bound, fill_samplers, fill_guidance, fill_quality)


def beside_real(samples: Image.Image) -> Image.Image:
    """The picture of 60 samples, a class a row, and 60 test digits to its right."""
    digits = Digits(batch_size=64)
    digits.setup()
    of_each = [digits.test.pixels[digits.test.labels == number][:6] for number in range(10)]  # (6, 1, 8, 8) each
    real = image_grid(digits.to_8bit(torch.stack(of_each, dim=1).flatten(0, 1)), classes=10)
    left, right = (np.asarray(picture.convert("L")) for picture in (samples, Image.fromarray(real)))
    white = np.full((len(left), 40), 255, np.uint8)
    return Image.fromarray(np.concatenate([left, white, right], axis=1))


def copy_pictures(rows: Path) -> None:
    """Copy the pictures of the pages from the folders of their jobs."""
    for picture, file in PICTURES.items():
        shutil.copyfile(rows / f"{file}.png", IMAGES / f"{picture}.png")
    beside_real(Image.open(rows / "default" / "samples.png")).save(IMAGES / f"{SAMPLES_BESIDE_REAL}.png")


def main() -> None:
    """Do the jobs, and fill the tables."""
    rows = Path(sys.argv[1]).resolve()
    options = dict(word.split("=", 1) for word in sys.argv[2:])
    rows.mkdir(parents=True, exist_ok=True)
    started: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(int(options.get("jobs", 2))) as workers:
        for name, job in jobs_of(options.get("mnist")).items():
            if name.startswith(options.get("only", "")):
                started[name] = workers.submit(run, rows, name, job, started)
    tables = Tables(PAGES)
    for write in FILLS:
        try:
            write(rows, tables)
        except FileNotFoundError as error:
            print(f"{write.__name__}: {error.filename} is not there, and the table stays as it is")
    tables.write()
    if "only" not in options:
        copy_pictures(rows)
    for future in started.values():
        future.result()


if __name__ == "__main__":
    main()
