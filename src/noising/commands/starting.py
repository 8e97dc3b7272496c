"""Starting a training from another's weights: those that fit are taken over, and what does not is named."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.errors import ConfigError, config_errors
from noising.trained import checkpoint_file, digest
from noising.training.checkpoint_content import OF_A_MODEL, raw_weights, require_entries
from noising.training.checkpoints import load_checkpoint

log = logging.getLogger(__name__)

_NAMED = 5  # the number of tensors that the log's line names; the card has all


def start_from(init_from: str, denoiser: Denoiser) -> dict[str, Any]:
    """Give a denoiser the averaged weights of a run, or of a checkpoint file, by name and shape; the card of them.

    Its schedule, data, classes or resolution may be others: tensors that are new, or of another shape, keep the values
    that they have. No code that the file names is run. Raises ConfigError if there is no such file, or nothing fits.
    """
    path = checkpoint_file(init_from, "init_from")
    with config_errors(f"init_from={init_from}"):
        checkpoint = load_checkpoint(path)
    with config_errors(f"init_from={init_from}: {path}"):
        require_entries(checkpoint, OF_A_MODEL)
    theirs = raw_weights(checkpoint) | checkpoint["ema"]["weights"]  # of buffers there is no average
    ours = {name: value for name, value in denoiser.state_dict().items() if isinstance(value, Tensor)}
    fitting = {name: theirs[name] for name, value in ours.items() if _shape(theirs.get(name)) == tuple(value.shape)}
    anew = [_described(name, ours[name], theirs.get(name)) for name in ours if name not in fitting]
    unused = [name for name in theirs if name not in ours]
    if not fitting:
        raise ConfigError(f"init_from={init_from}: none of its {len(theirs)} tensors fits this network: {anew[0]}")
    denoiser.load_state_dict(fitting, strict=False)
    step = int(checkpoint["global_step"])
    taken, all_of_them = (sum(value.numel() for value in one.values()) for one in (fitting, ours))
    words = [f"{taken:,} of {all_of_them:,} weights are copied from step {step:,}"]
    words += [f"newly initialized: {_listed(anew)}"] if anew else []
    words += [f"not used: {_listed(unused)}"] if unused else []
    log.info("init_from=%s: %s", init_from, "; ".join(words))
    source = {"checkpoint": str(path), "sha256": digest(path), "step": step, "weights": taken, "of": all_of_them}
    return {**source, "new": anew, "not_used": unused}


def _shape(tensor: Any) -> tuple[int, ...] | None:
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else None


def _described(name: str, ours: Tensor, theirs: Any) -> str:
    there = "missing in the checkpoint" if theirs is None else f"{_shape(theirs)} in the checkpoint"
    return f"{name} {tuple(ours.shape)}, {there}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more
