"""Going on with a training: the options that may differ, the checkpoint to start from, the way back from divergence."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer
from omegaconf import DictConfig

from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors, printable
from noising.runs.folder import Run
from noising.runs.resume import changed_options, require_same_options
from noising.training.checkpoint_content import OF_A_TRAINING, require_entries, require_training
from noising.training.checkpoints import load_checkpoint, older_checkpoints
from noising.training.module import DiffusionModule
from noising.training.safety.divergence import DivergenceError

log = logging.getLogger(__name__)

RESUMABLE_OPTIONS = (
    *("trainer", "threads", "lr_schedule", "skip_nonfinite_steps", "checkpoint_every_n_steps", "keep_checkpoints"),
    *("callbacks", "logger", "tags", "metrics", "bound", "validation_bound", "sampler", "grid"),
    *("data.root", "data.max_megapixels"),  # what is trained on is compared image by image
)
"""Options that may differ when a run is continued, besides those of its optimizer; others would make another run."""


def changed_since(run: Run, cfg: DictConfig) -> list[str]:
    """Options other than the run was started with, if it has made anything; ConfigError if one makes it another run."""
    if not run.config_file.exists() or not run.has_results:
        return []
    # but another optimizer would take the one's averages for its own
    own = [f"optimizer.{name}" for name in map(str, cfg.optimizer) if name != "_target_"]
    require_same_options(run, without_secrets(cfg), may_differ=(*RESUMABLE_OPTIONS, *own))
    return changed_options(run.config, without_secrets(cfg), may_differ=("resume", "logger"))


class Continued(NamedTuple):
    """The checkpoint that a training goes on from, and its number of threads."""

    path: Path
    threads: int | None


def checkpoint_to_continue(run: Run, trainer: Trainer, module: DiffusionModule) -> Continued | None:
    """Last checkpoint of a run, read before any work; None if it has written none.

    Raises ConfigError if it is damaged or not of this training, if it is gone and older ones are there, and if no step
    is left to train.
    """
    last = run.last_checkpoint
    if not last.exists():
        if older := older_checkpoints(last.parent):
            raise ConfigError(f"resume: {last} is missing; to go on from {older[-1].name}, copy it to {last.name}")
        return None
    with config_errors("resume"):
        content = load_checkpoint(last)
    with config_errors(f"resume: {last}"):
        require_entries(content, OF_A_TRAINING)
    step, max_steps = content["global_step"], trainer.max_steps
    if max_steps < step or (run.status == "finished" and max_steps == step):
        raise ConfigError(
            f"trainer.max_steps={max_steps}: {run.path} has already taken {step} steps; use a larger number, or print "
            f"its results with {run.resuming} alone"
        )
    with config_errors(f"resume: {last}"):
        require_training(trainer, module, content)
    return Continued(last, content.get("made_with", {}).get("threads"))


def warn_of_changes(run: Run, cfg: DictConfig, checkpoint: Continued | None, changed: Sequence[str]) -> None:
    """Log that a run starts from step 0 again, and the options that it goes on with."""
    if checkpoint is None and run.config_file.exists():
        every = cfg.checkpoint_every_n_steps
        last = printable(run.last_checkpoint)
        log.warning("there is no %s (it is written every %d steps): the run starts from step 0", last, every)
    if changed:
        log.warning("the run goes on with other options: %s", printable("; ".join(changed)))


@contextmanager
def last_good_checkpoint(run: Run, skips: bool) -> Iterator[None]:
    """Add to the error of a training that diverged which checkpoint to go on from, and how.

    skips: whether steps were left out already, so that going on would not help.
    """
    try:
        yield
    except DivergenceError as error:
        last, other = run.last_checkpoint, "skip_nonfinite_steps=true"
        if skips:
            advice = "; train again with a lower optimizer.lr"
        elif not last.exists():
            advice = f", before the first checkpoint. Lower optimizer.lr, or skip such steps with {other}"
        else:
            good = f"the last good checkpoint is from step {load_checkpoint(last)['global_step']}: {last}"
            advice = f"; {good}. Go on from there with {run.resuming} and a lower optimizer.lr, or {other}"
        raise DivergenceError(f"{error}{advice}") from error
