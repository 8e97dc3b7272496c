"""`train`: config -> objects -> Trainer.fit -> test. The architecture on one page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from noising.build import build_callbacks, build_data, build_module, build_trainer
from noising.jobs.main_process import end_with_main_process, ending_with_other_ranks
from noising.jobs.summary import describe, print_summary, recording
from noising.recipe import require_compatible
from noising.secrets import without_secrets
from noising.training.checkpoints import load_checkpoint
from noising.training.divergence import DivergenceError
from noising.training.run import Run

__all__ = ["train"]


def train(cfg: DictConfig, run_dir: Path) -> None:
    """Train, sample, evaluate; leave a run in run_dir, or continue the one that is there."""
    end_with_main_process()
    run = Run(run_dir)
    if cfg.resume and run.status == "finished":
        print_summary(run)
        return

    require_compatible(cfg)
    data = build_data(cfg)
    module = build_module(cfg, data)
    callbacks = build_callbacks(cfg, run, data, module.denoiser.schedule)
    trainer = build_trainer(cfg, run, data, callbacks)

    config = without_secrets(cfg)
    checkpoint = run.last_checkpoint if cfg.resume and run.last_checkpoint.exists() else None
    if trainer.is_global_zero:
        print(describe(module, data, cfg, run), flush=True)
        if cfg.resume and checkpoint is None and run.config_file.exists():
            print(f"no checkpoint there yet (one is written every {cfg.checkpoint_every_n_steps} steps): from step 0")
    with recording(run, config, trainer), ending_with_other_ranks(run):
        with _last_good(run):
            trainer.fit(module, data, ckpt_path=checkpoint)
        # from the file, since processes that were spawned for the fit took their average with them
        written = run.last_checkpoint if run.last_checkpoint.exists() else None
        trainer.test(module, data, ckpt_path=written, verbose=False)
    if trainer.is_global_zero:
        print_summary(run)


@contextmanager
def _last_good(run: Run) -> Iterator[None]:
    """Says of a training that diverged what there is to go on from, and how."""
    try:
        yield
    except DivergenceError as error:
        there = run.last_checkpoint
        kept = f"of step {load_checkpoint(there)['global_step']}: {there}" if there.exists() else "none"
        raise DivergenceError(
            f"{error}; the last good checkpoint is {kept}. Lower optimizer.lr, or leave such steps out: "
            f"resume={run.path} skip_nonfinite_steps=true with the run's other options"
        ) from error
