"""The commands: for each the function that does its work, and what the command line must know of it."""

from typing import NamedTuple

_THEORY = (
    *("schedule", "parameterization", "noise_label", "variance", "times", "objective", "weighting", "decoder"),
    *("sampler", "grid"),
)


class Command(NamedTuple):
    """A command; its name is that of its config in conf/ and of its script."""

    job: str
    """"module:function" of the function (config, run folder) -> None that does the work; imported when it starts."""
    help: str
    folder: str
    """The folder of its runs and sweeps."""
    sweeps: str = ""
    """The folder of its sweeps, if another."""
    positional: str = ""
    """The option that words without "=" stand for; {} is the words."""
    reads: tuple[str, ...] = ()
    """The groups that it reads, if not all: the classes of the others are neither imported nor checked."""


COMMANDS = {
    "train": Command("noising.commands.train:train", "train a diffusion model", "runs", "sweeps"),
    "evaluate": Command(
        "noising.commands.evaluate:evaluate", "measure a trained model: bound, Fréchet distance, ...", "evaluations"
    ),
    "compare": Command(
        "noising.commands.compare:compare",
        "compare runs in one table, or measure the difference between two",
        "comparisons",
        positional="runs=[{}]",
        reads=("bound",),
    ),
    "benchmark": Command(
        "noising.commands.benchmark:benchmark",
        "measure what a method saves, as ratios within one run",
        "benchmarks",
        positional="benchmark={}",
    ),
    "likelihood": Command(
        "noising.commands.likelihood:likelihood",
        "the exact likelihood of a trained model's flow, in bits/dim",
        "likelihoods",
    ),
    "sample": Command("noising.commands.sample:sample", "draw images from a trained model", "samples"),
    "latents": Command(
        "noising.commands.latents:latents",
        "interpolate between two latents, and invert images to noise and back",
        "latents",
    ),
    "reference": Command(
        "noising.commands.reference:reference", "compute or convert the feature statistics of real images", "references"
    ),
    "convert": Command("noising.commands.convert:convert", "weights of other projects, in and out", "conversions"),
    "verify": Command(
        "noising.commands.verify:verify",
        "check the identities of the theory for a config",
        "verifications",
        reads=_THEORY,
    ),
    "weightings": Command(
        "noising.commands.weightings:weightings",
        "plot how losses weight the noise levels: w(λ) and p(λ) on one axis",
        "weightings",
        reads=_THEORY,
    ),
}
