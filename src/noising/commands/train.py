"""`train`: config -> objects -> Trainer.fit -> Trainer.test. The architecture on one page."""

from pathlib import Path

from omegaconf import DictConfig

from noising.commands.continuing import changed_since, checkpoint_to_continue, last_good_checkpoint, warn_of_changes
from noising.commands.loggers import open_results
from noising.commands.starting import start_from
from noising.commands.tables import print_summary, relative
from noising.config.secrets import without_secrets
from noising.diffusion.networks import Adapted
from noising.experiment import Experiment
from noising.runs.folder import Run
from noising.runs.status import UnwrittenError, run_status
from noising.trained import checkpoint_file
from noising.training.safety.ranks import end_with_main_process, ending_with_other_ranks
from noising.training.threads import use_threads


def train(cfg: DictConfig, run_dir: Path) -> None:
    """Train, sample and evaluate; leave a run in run_dir, or continue the one that is there."""
    end_with_main_process()
    run = Run(run_dir)
    changed = changed_since(run, cfg) if cfg.resume else []
    if cfg.resume and run.status == "finished" and not changed:
        print_summary(run)
        return

    if cfg.init_from is not None and not cfg.resume:
        checkpoint_file(cfg.init_from, "init_from")  # before the images are read

    experiment = Experiment(cfg)
    module = experiment.module  # denoiser + objective + times + optimizer, validated and tested by the bound
    data = experiment.data  # images, with their resolution, channels and grey levels
    data.check_batch_size()
    results = open_results(run, cfg, "train")  # where every number goes: summary.json, metrics.csv, the loggers
    callbacks = experiment.callbacks(results)  # EMA, checkpoints, samples, quality, results
    trainer = experiment.trainer(results, callbacks)

    checkpoint = checkpoint_to_continue(run, trainer, module) if cfg.resume else None
    if cfg.init_from is not None and checkpoint is None:
        module.init_from = start_from(cfg.init_from, module.denoiser)
    threads = use_threads(trainer, cfg.threads, checkpoint and checkpoint.threads)
    if trainer.is_global_zero:
        print(_description(experiment, run, threads), flush=True)
        if cfg.resume:
            warn_of_changes(run, cfg, checkpoint, changed)
    try:
        with run_status(results, without_secrets(cfg), trainer.is_global_zero), ending_with_other_ranks(run):
            with last_good_checkpoint(run, module.skip_nonfinite_steps):
                trainer.fit(module, data, ckpt_path=checkpoint and checkpoint.path)
            # from the file: processes spawned for the fit took their average of the weights with them
            trained = run.last_checkpoint if run.last_checkpoint.exists() else None
            trainer.test(module, data, ckpt_path=trained, verbose=False)
    except UnwrittenError:
        print_summary(run)
        raise
    if trainer.is_global_zero:
        print_summary(run)


def _description(experiment: Experiment, run: Run, threads: int) -> str:
    """One line on a training about to begin: folder, data, network, length, threads."""
    data, model = experiment.data, experiment.denoiser.model
    network = model.network if isinstance(model, Adapted) else model
    millions = sum(p.numel() for p in experiment.denoiser.parameters()) / 1e6
    images = len(data.train.pixels)
    seen = f"{data.train_batches * data.batch_size} of {images}" if data.train_batches else images
    return (
        f"{relative(run.path)}: {seen} images of {data.name} "
        f"({data.resolution}x{data.resolution}x{data.channels}), {type(network).__name__} of {millions:.2f}M "
        f"parameters, {experiment.max_steps} steps of {data.batch_size} images, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
