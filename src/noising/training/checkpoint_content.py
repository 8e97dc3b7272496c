"""The content of a checkpoint: what each entry must be. A file may be whole and hold something else.

It is checked once, where the file is read, against the kinds of the entries; and before a training goes on, against the
network, the optimizer and the loops that will take the entries over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from packaging.version import Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from noising.config.leaves import leaves
from noising.diffusion.times import TimeSampler
from noising.training.ema import averaged
from noising.training.losses import QuartileLosses

_DEEPEST = 50
"""Containers within each other, more than any config has."""
_EXTRA = "_extra_state"
"""End of the name of what a module stores besides tensors, and reads itself."""
OF_A_MODEL = ("config", "ema", "state_dict", "global_step")
"""Entries that a trained network is made of."""
OF_A_TRAINING = (
    *OF_A_MODEL,
    *("epoch", "loops", "callbacks", "optimizer_states", "lr_schedulers", "pytorch-lightning_version"),
    *("times", "loss_sums"),
)
"""Entries that a training goes on from."""


def with_plain_tensors(content: Any, depth: int = 0) -> Any:
    """Copy containers, with every tensor in memory of its own if elements of it share a place or leave gaps.

    An optimizer cannot write into those. Raises ValueError for tensors that are not plain arrays of numbers, and for
    containers nested so deeply that they may hold themselves.
    """
    if depth > _DEEPEST:
        raise ValueError(f"holds containers nested more than {_DEEPEST} deep")
    if isinstance(content, Tensor):
        if content.layout != torch.strided or content.is_quantized or content.is_nested or content.device.type != "cpu":
            raise ValueError(f"holds a tensor that is no plain array of numbers ({content.layout}, {content.device})")
        dense = torch.empty_like(content, device="meta").stride() == content.stride()
        return content if dense else content.clone(memory_format=torch.contiguous_format)
    if isinstance(content, dict):
        return {name: with_plain_tensors(value, depth + 1) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)([with_plain_tensors(value, depth + 1) for value in content])
    return content


class _Strict(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)


class _Average(_Strict):
    decay: float = Field(ge=0, lt=1)
    updates: int = Field(ge=0)
    weights: dict[str, Tensor]


def _sums(sums: Tensor) -> Tensor:
    one = QuartileLosses().sums
    if sums.shape[-2:] != one.shape or sums.ndim not in (2, 3) or not sums.numel() or not sums.is_floating_point():
        raise ValueError(f"of shape {tuple(sums.shape)}, {sums.dtype}")
    return sums


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    for name, value in state.items():
        if not isinstance(value, Tensor) and not name.endswith(_EXTRA):
            raise ValueError(f"{name} is {type(value).__name__}")
    return state


def _words_and_numbers(config: Any) -> Any:
    for path, value in leaves(config):
        if not isinstance(value, str | int | float | dict | list | None):  # dicts and lists: empty ones
            raise ValueError(f"{path} is {type(value).__name__}")
    return config


def _circumstances(made_with: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(threads := made_with.get("threads", 1), int):
        raise ValueError(f"threads is {type(threads).__name__}")
    return made_with


_Count = Annotated[int, Field(ge=0)]


class _Content(_Strict):
    """Every entry of ours and of Lightning's that is read; the default stands for one that is not there."""

    noising_format: int = 1
    config: Annotated[Any, AfterValidator(_words_and_numbers)] = None  # a door of its own reads it
    ema: _Average = Field(default=None)  # type: ignore[assignment]
    state_dict: Annotated[dict[str, Any], AfterValidator(_tensors)] = {}
    global_step: _Count = 0
    epoch: _Count = 0
    skipped_steps: _Count = 0
    loops: dict[str, dict[str, Any]] = {}
    callbacks: dict[str, Any] = {}
    optimizer_states: list[dict[str, Any]] = []
    lr_schedulers: list[dict[str, Any]] = []
    lightning: Annotated[str, AfterValidator(Version)] = Field(default="2", alias="pytorch-lightning_version")
    times: dict[str, Tensor] = {}
    loss_sums: Annotated[Tensor, AfterValidator(_sums)] = Field(default=None)  # type: ignore[assignment]
    init_from: dict[str, Any] | None = None
    converted: dict[str, Any] | None = None
    made_with: Annotated[dict[str, Any], AfterValidator(_circumstances)] = {}
    data_sha256: str = ""


def require_kinds(content: Mapping[str, Any]) -> None:
    """Raise ValueError for an entry that is not of its type."""
    try:
        _Content.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"holds no usable {place} ({' '.join(first['msg'].split())})") from None


def require_entries(content: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ValueError for an entry that is not there."""
    for name in names:
        if content.get(name) is None:
            raise ValueError(f"holds no {name}: it was not written by noising")


def require_tensors(place: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise ValueError unless the tensors of a checkpoint are those of the network, by name and shape."""
    for name in sorted({*theirs, *ours}):
        there, here = (_shape(of, name) for of in (theirs, ours))
        if there != here:
            raise ValueError(
                f"holds another network than its options describe: {place} has {name} of shape {there}, not {here}"
            )


def _shape(tensors: Mapping[str, Any], name: str) -> str:
    if not isinstance(tensor := tensors.get(name), Tensor):
        return "nothing" if name not in tensors else "no tensor"
    return f"{tuple(tensor.shape)}" + (" of complex numbers" if tensor.is_complex() else "")


def raw_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The denoiser's entries of a checkpoint's `state_dict`, by their names within it."""
    entries = checkpoint["state_dict"].items()
    return {name.removeprefix("denoiser."): value for name, value in entries if name.startswith("denoiser.")}


def require_weights(
    denoiser: nn.Module, average: Mapping[str, Any], state: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Raise ValueError unless a checkpoint's averaged and raw weights are those of the network.

    average: the entry `ema`; state: the raw weights, where `own` are those of the module that takes them.
    """
    require_tensors("state_dict", state, own)
    require_tensors("ema.weights", average["weights"], averaged(denoiser))


def require_training(trainer: Trainer, module: LightningModule, content: Mapping[str, Any]) -> None:
    """Let parts such as those of the training take their states over, as Lightning will, before any work.

    Raises ValueError for a state that its part cannot take.
    """
    denoiser, times = module.denoiser, module.times
    assert isinstance(denoiser, nn.Module)
    assert isinstance(times, TimeSampler)
    require_weights(denoiser, content["ema"], content["state_dict"], module.state_dict())
    parts: dict[str, Callable[[], None]] = {
        "state_dict": lambda: _require_state(module, content["state_dict"]),
        "times": lambda: _require_alike(content["times"], times.state_dict()),
        "loops": lambda: _require_loops(trainer, content["loops"]),
        "optimizer_states": lambda: _require_optimizer(module, content),
        "callbacks": lambda: _require_callbacks(trainer, content["callbacks"]),
    }
    for name, part in parts.items():
        try:
            part()
        except Exception as error:  # nearly anything is raised on a state of another form
            words = " ".join(str(error).split())
            raise ValueError(f"holds no usable {name} ({type(error).__name__}: {words})") from error


def _require_alike(theirs: Any, ours: Any, place: str = "") -> None:
    """Raise ValueError unless all that is in ours is in theirs too: the same keys, shapes and types."""
    if isinstance(ours, Mapping):
        if not isinstance(theirs, Mapping):
            raise ValueError(f"{place} is {type(theirs).__name__}, expected a mapping")
        for name, value in ours.items():
            if name not in theirs:
                raise ValueError(f"{place}.{name} is missing".lstrip("."))
            _require_alike(theirs[name], value, f"{place}.{name}".lstrip("."))
    elif isinstance(ours, Tensor):
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            found = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
            raise ValueError(f"{place} is {found}, expected {tuple(ours.shape)} {ours.dtype}")
    elif ours is None or isinstance(ours, bool | str):
        if not isinstance(theirs, type(ours) if isinstance(ours, str) else int | float | None):
            raise ValueError(f"{place} is {theirs!r}, expected {type(ours).__name__}")
    elif isinstance(ours, int | float):
        if not isinstance(theirs, int | float | Tensor) or (isinstance(theirs, Tensor) and theirs.numel() != 1):
            raise ValueError(f"{place} is {theirs!r}, expected a number")
    elif isinstance(ours, list | tuple) and ours:
        if not isinstance(theirs, list | tuple) or len(theirs) != len(ours):
            raise ValueError(f"{place} is {theirs!r}, expected {len(ours)} values")
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            _require_alike(one, other, f"{place}[{number}]")


def _require_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    module.load_state_dict(state)


def _require_loops(trainer: Trainer, states: Mapping[str, Any]) -> None:
    state = states["fit_loop"]
    loop = type(trainer.fit_loop)(trainer)  # another, that stays as it is
    before = loop.state_dict()
    loop.load_state_dict(state)
    _require_alike(loop.state_dict(), before)


def _require_optimizer(module: LightningModule, content: Mapping[str, Any]) -> None:
    made: Any = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    (state,), (schedule,) = content["optimizer_states"], content["lr_schedulers"]
    before, scheduled = optimizer.state_dict()["param_groups"], scheduler.state_dict()
    scheduler.load_state_dict(dict(schedule))  # which takes a part of it away
    _require_alike(scheduler.state_dict(), scheduled)
    optimizer.load_state_dict(state)
    _require_alike(optimizer.state_dict()["param_groups"], before)
    for group in optimizer.param_groups:
        for number, parameter in enumerate(group["params"]):
            _require_averages(optimizer, group, parameter, number)


def _require_averages(optimizer: Any, group: Mapping[str, Any], parameter: nn.Parameter, number: int) -> None:
    """Raise ValueError unless Adam, or AdamW, can take a step with its averages of a parameter."""
    state = optimizer.state.get(parameter)
    if not state or not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return
    averages = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
    if float(state["step"]) < 0:
        raise ValueError(f"step {state['step']}")
    _require_alike(state, dict.fromkeys(averages, parameter.detach()), f"state.{number}")


def _require_callbacks(trainer: Trainer, states: Mapping[str, Any]) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (state := states.get(callback.state_key)) is not None:
            callback.load_state_dict(dict(state))
