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
        "set runs side by side, or measure the difference of two",
        "comparisons",
        positional="runs=[{}]",
        reads=("bound",),
    ),
    "benchmark": Command(
        "noising.commands.benchmark:benchmark",
        "measure what a method saves, as ratios in one run",
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
        "noising.commands.latents:latents", "images between two noises, and images to noise and back", "latents"
    ),
    "reference": Command(
        "noising.commands.reference:reference", "statistics of real images' features, and files of them", "references"
    ),
    "convert": Command("noising.commands.convert:convert", "weights of other projects, in and out", "conversions"),
    "verify": Command(
        "noising.commands.verify:verify",
        "hold the theory's identities against a config",
        "verifications",
        reads=_THEORY,
    ),
    "weightings": Command(
        "noising.commands.weightings:weightings",
        "draw what losses weigh: w(λ) and p(λ) on one axis",
        "weightings",
        reads=_THEORY,
    ),
}
