"""The options at the top of a command's config, and those of its trainer that we read: what each must be.

They are checked once, before a job starts or a checkpoint is used. No job looks at them again, but for what only its
data can tell.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter

from noising.config.option_types import LARGEST, integral
from noising.errors import ConfigError

MAX_DEVICES = 1024
"""The most that one machine can have; Lightning would list them before it looks whether they exist."""
MAX_THREADS = 1024
"""The most threads of a process."""
MAX_IMAGES = 10_000_000
"""The most images of one sampling job, which are read into memory in the end."""


def _whole(least: int, most: int = LARGEST, null: bool = False) -> tuple[Any, str]:
    whole = Annotated[int, Field(ge=least, le=most), BeforeValidator(integral)]
    limits = f"from {least}" + (f" to {most}" if most < LARGEST else "{to_largest}")
    return whole | None if null else whole, f"{{}} must be a whole number {limits}, got {{}}"


def _listed(type_: Any) -> Any:
    """The type of a list, of which one entry may be given without brackets: splits=test."""
    return Annotated[type_, BeforeValidator(lambda value: [value] if isinstance(value, str | int | float) else value)]


def _elsewhere(value: Any, advice: str) -> tuple[Any, str]:
    """An option of Lightning's that has one value here, or null; advice: what does its work."""
    return (None if value is None else Literal[value] | None), f"{{}} cannot be set: {advice}"


_ELSEWHERE = {
    "logger": _elsewhere(None, "choose loggers with the group logger, as in logger=[csv,tensorboard]"),
    "callbacks": _elsewhere(None, "add callbacks to the group callbacks, as in '+callbacks.mine={{_target_: NAME}}'"),
    "default_root_dir": _elsewhere(None, "all files go to the run's folder, hydra.run.dir"),
    "min_epochs": _elsewhere(None, "everything is counted in optimizer steps; use trainer.min_steps"),
    "check_val_every_n_epoch": _elsewhere(None, "validation runs every trainer.val_check_interval steps"),
    "reload_dataloaders_every_n_epochs": _elsewhere(
        0, "the images stay in memory, and their order depends on the step alone"
    ),
    "use_distributed_sampler": _elsewhere(False, "noising itself divides the images among the devices"),
    "enable_checkpointing": _elsewhere(
        True, "the test at the end needs a checkpoint; set their interval with checkpoint_every_n_steps"
    ),
    "limit_predict_batches": _elsewhere(None, "training has no prediction; scripts/sample.py n=... draws samples"),
    "barebones": _elsewhere(False, "it would leave out the checkpoints and numbers that every run needs"),
    "enable_autolog_hparams": _elsewhere(True, "the config is written to config.yaml and the loggers"),
    "model_registry": _elsewhere(
        None, "checkpoints go to the run's folder, and to W&B by logger.wandb.artifacts=[checkpoints]"
    ),
}
"""Options of Lightning's Trainer whose work is done otherwise: taken, they would be ignored or break it."""
_OF_TRAINING = (
    *("max_steps", "min_steps", "max_epochs", "overfit_batches", "limit_train_batches", "limit_val_batches"),
    *("val_check_interval", "num_sanity_val_steps", "accumulate_grad_batches", "log_every_n_steps", "max_time"),
    *("gradient_clip_val", "gradient_clip_algorithm"),
)
_BATCHES = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None
_BATCHES_LINE = "{} must be a number of batches from 1, or a part of the images in (0, 1], got {}"
_ZERO = Literal[0] | Annotated[float, Field(ge=0, le=0)]
_SPLIT = Literal["test", "train", "val"]
_PATH = Annotated[str, Field(min_length=1)] | None
OPTIONS: dict[str, tuple[Any, str]] = {
    "seed": _whole(0),
    "timesteps": _whole(1, 1_000_000),
    "label_dropout": (
        Annotated[float, Field(ge=0, lt=1)] | None,
        "{} must be null (no classes) or a number in [0, 1), got {}",
    ),
    "skip_nonfinite_steps": (bool, "{} must be true or false, got {}"),
    "threads": _whole(1, MAX_THREADS, null=True),
    "checkpoint_every_n_steps": _whole(1),
    "keep_checkpoints": _whole(1),
    "tags": (_listed(list[str]), "{} must be a list of words, got {}: e.g. tags=[first,try]"),
    "trainer.max_steps": _whole(1),
    "trainer.max_epochs": _whole(1, null=True),
    "trainer.limit_train_batches": (_BATCHES, _BATCHES_LINE),
    "trainer.overfit_batches": (_BATCHES | _ZERO, _BATCHES_LINE),
    "trainer.enable_progress_bar": (bool | None, "{} must be true or false, got {}"),
    "trainer.precision": (
        Literal["32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16] | None,
        "{}={}: weights and bounds are float32 here; choose 32-true, bf16-mixed or 16-mixed",
    ),
    "evaluate trainer.precision": (
        Literal["32-true", "32", 32] | None,
        "{}={}: bounds are measured in float32: leave it out",
    ),
    **{f"trainer.{name}": entry for name, entry in _ELSEWHERE.items()},
    "evaluate trainer.enable_checkpointing": _elsewhere(False, "an evaluation writes no checkpoint"),
    **{f"evaluate trainer.{name}": _elsewhere(None, "an evaluation trains nothing") for name in _OF_TRAINING},
    "trainer.val_check_interval": _whole(1),
    "trainer.log_every_n_steps": _whole(1),
    "trainer.accumulate_grad_batches": _whole(1),
    "batch_size": _whole(1),
    "devices": _whole(1, MAX_DEVICES),
    "n": _whole(1, MAX_IMAGES),
    "class_label": _whole(0, null=True),
    "format": (Literal["npz", "png"], "{} must be one of npz, png, got {}"),
    "split": (_SPLIT, "{} must be test, train or val, got {}"),
    "splits": (
        _listed(Annotated[list[_SPLIT], Field(min_length=1)]),
        "{} must be a list of test, train, val, got {}: e.g. splits=[test]",
    ),
    "runs": (Annotated[list[Any], Field(min_length=2)], "{} must be two or more run folders, got {}: compare A B"),
    "vary": (_listed(list[Any]), "{} must be a list of entries of the cards, got {}: e.g. vary=[sampler,grid]"),
    "pairs": _whole(1),
    "between": _whole(1),
    "latents images": _whole(1),
    "likelihood images": _whole(2, null=True),
    "replicates": _whole(2),
    "steps": (
        _listed(Annotated[list[Annotated[int, Field(ge=2, le=LARGEST)]], Field(min_length=1)]),
        "{} must be a list of whole numbers from 2, as [10,50], got {}",
    ),
    "start_time": (float | None, "{}={}: expected a number or null"),
    "latents clip": (Annotated[float, Field(gt=0)] | None, "{} must be a positive number or null, got {}"),
    "likelihood clip": (float | None, "{}={}: expected a number or null"),
    "count": _whole(2, null=True),
    "init_from": (_PATH, "{}={}: expected a run's folder or a checkpoint file, or null"),
    "samples": (_PATH, "{}={}: expected a folder of images or an .npz file, or null"),
    "from": (_PATH, "{}={}: expected a file's path, or null"),
    "to": (_PATH, "{}={}: expected a file's path, or null"),
    "weights": (_PATH, "{}={}: expected a file of weights or a folder, or null"),
    "check": (_PATH, "{}={}: expected a .safetensors file, or null"),
    "layout": (
        Literal["openai", "edm", "edm2", "diffusers", "score_sde", "uvit", "jit", "dit", "diffusers_dit", "vdm"] | None,
        "{} must be openai, edm, edm2, diffusers, score_sde, uvit, jit, dit, diffusers_dit, vdm, or null, got {}",
    ),
    "convert to": (
        Literal["diffusers", "openai", "edm", "edm2", "score_sde", "uvit", "jit", "dit", "vdm", "safetensors"] | None,
        "{} must be diffusers, openai, edm, edm2, score_sde, uvit, jit, dit, vdm or safetensors, got {}",
    ),
    "averaged": (bool, "{} must be true or false, got {}"),
    "entry": (str | None, "{} must be the name of an entry, or null, got {}"),
    "unchecked": (bool, "{} must be true or false, got {}"),
    "parameters": _whole(1, null=True),
}
"""The type of each, and the line for what is not of it. Where one name has two meanings, the command is named too."""


def check_options(command: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command's resolved config that are to be read otherwise than they are written: 1e5 as 100000.

    Raises ConfigError for one that is not what it must be.
    """
    read = {}
    trainer = config.get("trainer")
    nested = {f"trainer.{name}": value for name, value in trainer.items()} if isinstance(trainer, Mapping) else {}
    if command == "train" and nested:  # what is left out of it is null
        nested = dict.fromkeys(option for option in OPTIONS if option.startswith("trainer.")) | nested
    for option, value in {**config, **nested}.items():
        if (known := OPTIONS.get(f"{command} {option}") or OPTIONS.get(option)) is None:
            continue
        type_, line = known
        try:
            valid = TypeAdapter(type_, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
        except ValueError:
            shown = repr(value) if isinstance(value, str) and not re.search("[^\\W\\d]", value) else value
            to_largest = f" to {LARGEST}" if isinstance(value, int) and value > LARGEST else ""
            raise ConfigError(line.format(option, shown, to_largest=to_largest)) from None
        if type(valid) is not type(value):
            read[option] = valid
    return read
