"""`train`: config -> objects -> Trainer.fit -> test. The architecture on one page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from noising.commands.tables import describe, print_summary
from noising.config.secrets import without_secrets
from noising.errors import ConfigError, config_errors
from noising.experiment import Experiment
from noising.runs.folder import Run
from noising.runs.resume import changed_options, require_same_options
from noising.runs.status import run_status
from noising.training.checkpoints import load_checkpoint
from noising.training.loggers import close_loggers
from noising.training.safety.divergence import DivergenceError
from noising.training.safety.ranks import end_with_main_process, ending_with_other_ranks

__all__ = ["train"]


log = logging.getLogger(__name__)


RESUMABLE_OPTIONS = (
    *("trainer", "lr_schedule", "skip_nonfinite_steps", "checkpoint_every_n_steps", "keep_checkpoints"),
    *("callbacks", "logger", "tags", "metrics", "bound", "validation_bound", "sampler", "grid", "data.root"),
)
"""What a run may go on with otherwise than it began, besides the optimizer's options; more would be another run."""


def train(cfg: DictConfig, run_dir: Path) -> None:
    """Train, sample, evaluate; leave a run in run_dir, or continue the one that is there."""
    end_with_main_process()
    run, config = Run(run_dir), without_secrets(cfg)
    changed: list[str] = []
    if cfg.resume and run.config_file.exists():
        require_same_options(run, config, free=(*RESUMABLE_OPTIONS, *_options_of(cfg.optimizer)))
        changed = changed_options(run.config, config, free=("resume",))
    if cfg.resume and run.status == "finished" and not changed:
        print_summary(run)
        return

    experiment = Experiment(cfg)
    module, data = experiment.module, experiment.data
    trainer = experiment.trainer(run, experiment.callbacks(run))

    checkpoint = _checkpoint_to_go_on_from(run, cfg.trainer.max_steps) if cfg.resume else None
    if trainer.is_global_zero:
        print(describe(module, data, cfg, run), flush=True)
        if cfg.resume and checkpoint is None and run.config_file.exists():
            every = cfg.checkpoint_every_n_steps
            log.warning("there is no %s (it is written every %d steps): from step 0", run.last_checkpoint, every)
        if changed:
            log.warning("goes on with other options: %s", "; ".join(changed))
    with (
        run_status(run, config, trainer.is_global_zero, partial(close_loggers, trainer.loggers)),
        ending_with_other_ranks(run),
    ):
        with _last_good(run, module.skip_nonfinite_steps):
            trainer.fit(module, data, ckpt_path=checkpoint)
        # from the file, since processes that were spawned for the fit took their average with them
        written = run.last_checkpoint if run.last_checkpoint.exists() else None
        trainer.test(module, data, ckpt_path=written, verbose=False)
    if trainer.is_global_zero:
        print_summary(run)


def _checkpoint_to_go_on_from(run: Run, max_steps: int) -> Path | None:
    """The last one, looked through before any work.

    Raises ConfigError if it is damaged, if it is gone and older ones are there, and if no step is left to train.
    """
    last = run.last_checkpoint
    if not last.exists():
        if older := sorted(last.parent.glob("step_*.ckpt")):
            raise ConfigError(f"resume: {last} is gone; to go on from {older[-1].name}, copy it to {last.name}")
        return None
    with config_errors("resume"):
        step = load_checkpoint(last)["global_step"]
    if max_steps < step or (run.status == "finished" and max_steps == step):
        raise ConfigError(
            f"trainer.max_steps={max_steps}: {run.path} has taken {step} steps; give it more, or see its numbers with "
            f"{run.resuming} alone"
        )
    return last


def _options_of(optimizer: DictConfig) -> list[str]:
    """All but which optimizer it is: another would take the one's averages for its own."""
    return [f"optimizer.{name}" for name in map(str, optimizer) if name != "_target_"]


@contextmanager
def _last_good(run: Run, skips: bool) -> Iterator[None]:
    """Says of a training that diverged what there is to go on from, and how; where steps were left out, nothing."""
    try:
        yield
    except DivergenceError as error:
        there = run.last_checkpoint
        if skips:
            raise DivergenceError(f"{error}; train anew with a lower optimizer.lr") from error
        if not there.exists():
            raise DivergenceError(
                f"{error}, before the first checkpoint. Lower optimizer.lr, or leave such steps out: "
                "skip_nonfinite_steps=true"
            ) from error
        step = load_checkpoint(there)["global_step"]
        raise DivergenceError(
            f"{error}; the last good checkpoint is of step {step}: {there}. Go on from there with {run.resuming} "
            "and a lower optimizer.lr, or skip_nonfinite_steps=true"
        ) from error
