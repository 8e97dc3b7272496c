"""`convert`: the weights of another project's file become a run, and a run's weights such a file.

Nothing is written before what it would hold has been compared: with outputs of the other side's code, where there are
some, and with real images.
"""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from noising.commands.conversion_checks import Check, of_images, same_output, table
from noising.commands.export import export
from noising.commands.foreign_weights import ForeignWeights, read_weights
from noising.commands.loggers import open_results
from noising.commands.tables import print_files, print_table, relative
from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors, require
from noising.experiment import Experiment
from noising.interchange.layout import Described, HeldSchedule
from noising.interchange.layouts import LAYOUTS, recognized
from noising.runs.folder import Run, replacing
from noising.runs.status import run_status
from noising.training.checkpoints import FORMAT
from noising.training.ema import averaged

log = logging.getLogger(__name__)

OWN = (
    *("weights", "known", "layout", "averaged", "entry", "file"),
    *("parameters", "check", "unchecked", "checkpoint", "to"),
)
"""Options of this command, which are none of the run that it writes."""
FACTS = ("channels", "out_channels", "resolution", "classes", "augmentation_labels")
"""Arguments of a network that come from the data and the theory, never from the config of the model."""


def convert(cfg: DictConfig, run_dir: Path) -> None:
    """Read cfg.weights into a run's folder, or write the weights of cfg.checkpoint in the layout cfg.to."""
    if (cfg.weights is None) == (cfg.checkpoint is None):
        raise ConfigError("convert reads weights=FILE, or writes checkpoint=RUN to=LAYOUT: give one of the two")
    if cfg.checkpoint is not None:
        export(cfg, run_dir)
        return
    file = read_weights(cfg.weights, cfg.averaged, cfg.entry)
    with config_errors(f"weights={cfg.weights}"):
        layout = cfg.layout or recognized(file.shapes)
        _require_layout(layout, file)
    data = Experiment(_without_own(cfg)).data
    with config_errors(f"weights={cfg.weights}"):
        described = LAYOUTS[layout].describe(file.shapes, data.resolution, **_facts(cfg, file))
        schedule = LAYOUTS[layout].schedule_of(file.tensors)
    config = _config(cfg, described, schedule)
    experiment = Experiment(config, data)
    _require_facts(cfg, described, experiment)
    try:
        module = experiment.module
    except ConfigError as error:
        raise ConfigError(f"weights={cfg.weights}: {error}; heads and groups are file.heads, file.groups") from error
    network = module.denoiser.model
    with config_errors(f"weights={cfg.weights}"):
        network.load_state_dict(described.layout(network).read(file.tensors))
    if schedule is not None:
        module.denoiser.schedule.load_state_dict(schedule.weights)
    checks, theory = _of_weights(cfg, file, layout, experiment), _of_theory(experiment)
    if schedule is not None:
        ends = module.denoiser.schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        name = f"the file's schedule, {schedule.family.__name__}: λ at t = 0 and t = 1"
        checks.append(Check(name, "{:.4f} and {:.4f}".format(*ends), "", None))
    print_table(f"{cfg.weights}: {layout}", Check._fields, map(_cells, [*checks, *theory]), words=(0, 3))
    if any(check.holds is False for check in checks):
        raise ConfigError(f"weights={cfg.weights}: nothing is written, since a check does not hold")
    if any(check.holds is False for check in theory):
        why = "its noise is no better than a linear guess: are schedule, parameterization and noise_label its own?"
        if cfg.check is None and not cfg.unchecked:
            raise ConfigError(
                f"weights={cfg.weights}: nothing is written, since {why} unchecked=true writes it all the same"
            )
        log.warning("weights=%s: %s", cfg.weights, why)
    results = open_results(Run(run_dir), config, "convert")
    with run_status(results, without_secrets(config)) as run:
        card = {"layout": layout, **file.source, "averaged": cfg.averaged, "facts": OmegaConf.to_container(cfg.file)}
        content = {
            "noising_format": FORMAT,
            "config": without_secrets(config),
            "state_dict": module.state_dict(),
            "ema": {"decay": 0.0, "updates": 0, "weights": averaged(module.denoiser)},
            "global_step": 0,
            "converted": card,
        }
        with replacing(run.last_checkpoint) as target:
            torch.save(content, target)
        run.update({"converted": {**card, "checks": table([*checks, *theory])}})
    _print_cost(experiment)
    print(f"in {relative(run_dir)}, a run as any other: noising evaluate checkpoint={relative(run_dir)}")
    print_files(run.last_checkpoint)


def _facts(cfg: DictConfig, file: ForeignWeights) -> dict[str, Any]:
    """The facts that a file's names do not tell: its config.json, and the options `file`."""
    given = {name: value for name, value in cfg.file.items() if value is not None}
    return {**given, **({"config": file.config} if file.config else {})}


def _without_own(cfg: DictConfig) -> DictConfig:
    return DictConfig({name: cfg._get_node(name) for name in cfg if name not in OWN})


def _config(cfg: DictConfig, described: Described, schedule: HeldSchedule | None) -> DictConfig:
    """The config of the run: the given one with the network of the file, and with its schedule if it holds one."""
    config = _without_own(cfg)
    family = described.family
    known = {"dropout", "checkpointing"} & inspect.signature(family).parameters.keys()
    of_training = {name: cfg.model[name] for name in sorted(known) if name in cfg.model}
    options = {name: value for name, value in described.options.items() if name not in FACTS}
    config.model = {"_target_": _path(family), **of_training, **options}
    if schedule is not None:
        config.schedule = {"_target_": _path(schedule.family), **schedule.options}
    return config


def _path(family: type) -> str:
    return f"{family.__module__}.{family.__qualname__}"


def _require_facts(cfg: DictConfig, described: Described, experiment: Experiment) -> None:
    """Raise ConfigError where the file's network is made for other images, classes or outputs."""
    file, data, place = described.options, experiment.data, f"weights={cfg.weights}"
    if file["channels"] != data.channels:
        raise ConfigError(f"{place} takes images of {file['channels']} channels, {data.place} has {data.channels}")
    if file["resolution"] != data.resolution:
        raise ConfigError(f"{place} takes images of side {file['resolution']}, {data.place} has {data.resolution}")
    outputs = file["channels"] * experiment.recipe.variance.outputs
    if file["out_channels"] != outputs:
        advice = "learned_range" if file["out_channels"] == 2 * file["channels"] else "fixed_large"
        advice += ", or file.drops_variance=true for SiT" if "drops_variance" in file else ""
        raise ConfigError(f"{place} gives {file['out_channels']} channels, not {outputs}: use variance={advice}")
    classes = file.get("classes", 0)
    if classes and not experiment.num_classes:
        raise ConfigError(f"{place} is trained with {classes} classes: use label_dropout=0.0")
    if classes != experiment.num_classes:
        advice = "use label_dropout=null" if not classes else "use the data that it was trained on"
        raise ConfigError(
            f"{place} is trained with {classes} classes, {data.place} has {experiment.num_classes}: {advice}"
        )
    labels, given = file.get("augmentation_labels", 0), experiment.facts_of_network["augmentation_labels"]
    if labels != given:
        advice = "augmentation=edm" if labels else "augmentation=null"
        raise ConfigError(f"{place} is trained with {labels} augmentation labels, not {given}: use {advice}")


def _require_layout(layout: str, file: ForeignWeights) -> None:
    """Raise ValueError for a layout that the file is not in, and for networks that see other images than those here."""
    known = LAYOUTS[layout].recognizes(file.shapes)
    require(known, f"its names, such as {next(iter(file.shapes))}, are not of layout={layout}: leave layout out")
    if layout == "score_sde":
        fourier = any(name.endswith("all_modules.0.W") for name in file.shapes)
        require(not fourier, "score SDE's NCSN++ is trained on images in [0, 1], those here are in [-1, 1]")


def _of_weights(cfg: DictConfig, file: ForeignWeights, layout: str, experiment: Experiment) -> list[Check]:
    """The checks of the weights themselves, which all must hold."""
    network = experiment.module.denoiser.model
    numbers = sum(parameter.numel() for parameter in network.parameters())
    found = [Check("tensors of the file, each with its place and shape", f"{len(file.tensors)}", "all", True)]
    expected = cfg.parameters
    same = None if expected is None else numbers == expected
    found.append(Check("parameters", f"{numbers:,}", "" if expected is None else f"{expected:,}", same))
    lost = [name for name, tensor in file.tensors.items() if not tensor.isfinite().all()]
    found.append(Check("tensors with numbers that are not finite", ", ".join(lost[:3]) or "0", "0", not lost))
    if cfg.check is not None:
        found.append(same_output(experiment.module.denoiser, cfg.check))
    if layout.startswith("diffusers"):
        from noising.commands.diffusers_check import same_as_diffusers  # here: diffusers takes seconds to import

        found += same_as_diffusers(network, file)
    if not any(check.name.startswith("outputs of") for check in found):
        found.append(Check("outputs of the original code", "not compared", "", None))
    return found


def _of_theory(experiment: Experiment) -> list[Check]:
    """The checks by real images, of the weights in the theory that was chosen."""
    denoiser, decoder = experiment.module.denoiser, experiment.recipe.decoder
    return of_images(denoiser, experiment.data, experiment.num_classes, decoder, experiment.config.timesteps)


def _print_cost(experiment: Experiment) -> None:
    """Print the network evaluations of a bound and of an FID, before anyone begins with them."""
    images, steps = len(experiment.data.test.pixels), experiment.config.timesteps
    sampler = experiment.sampler
    samples = 50_000 * sampler.evaluations(experiment.module.denoiser)
    print(
        f"network evaluations: {images * steps:,} for the exact bound of {images:,} test images (bound=adaptive takes "
        f"far fewer), {samples:,} for 50,000 samples of {type(sampler).__name__} in {sampler.steps} steps"
    )


def _cells(check: Check) -> list[str]:
    holds: Mapping[bool | None, str] = {True: "yes", False: "NO", None: "no limit"}
    return [check.name, check.measured, check.limit, holds[check.holds]]
