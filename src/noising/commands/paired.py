"""The difference of two models' bounds, measured as one number.

Two evaluations of two models differ by both models' noise. Evaluated on the same images, times and noise, what both
find hard cancels, and the difference is known far better than either bound.
"""

import torch
from omegaconf import DictConfig, OmegaConf

from noising.commands.devices import find_device
from noising.commands.loggers import open_results
from noising.commands.tables import evaluations_bar, limited_words, number, print_files, print_table, relative
from noising.config.instantiate import make
from noising.config.secrets import without_secrets
from noising.diffusion.drawing import in_evaluation
from noising.diffusion.likelihood.estimators import BoundEstimator
from noising.diffusion.likelihood.meter import evaluate_bound
from noising.diffusion.likelihood.terms import Difference
from noising.errors import ConfigError, config_errors
from noising.runs.declarations import ERRORS, Declaration
from noising.runs.folder import Run
from noising.runs.status import run_status
from noising.trained import load
from noising.training.validation import bound_declarations


def measure_difference(cfg: DictConfig, run: Run) -> None:
    """Leave SPLIT/difference with its errors and card in summary.json, and print it."""
    if len(cfg.runs) != 2:
        raise ConfigError(f"paired=true compares two runs, got {len(cfg.runs)}")
    estimator = make(cfg.bound, "bound", BoundEstimator)
    device = find_device(cfg.device)
    first, second = (load(path) for path in cfg.runs)
    one, other = (getattr(trained.data, cfg.split).pixels for trained in (first, second))
    if first.data.levels != second.data.levels or one.shape != other.shape or not torch.equal(one, other):
        raise ConfigError(f"runs: their {cfg.split} images are not the same ({first.data.name}, {second.data.name})")
    terms = [trained.bound_terms(estimator.clip, device) for trained in (first, second)]
    units = {term.decoder.unit for term in terms}
    if len(units) > 1:
        raise ConfigError(f"runs: one bound is in {', the other in '.join(sorted(units))}: they cannot be compared")
    with config_errors("runs"):
        pair = Difference(*terms)
    results, unit = open_results(run, cfg, "compare"), units.pop()
    with run_status(results, without_secrets(cfg)):
        results.declare(_declared(unit))
        with in_evaluation(first.denoiser), in_evaluation(second.denoiser), config_errors("bound"):
            images = first.image_set(cfg.split, device)
            bound = evaluate_bound(pair, estimator, images, cfg.batch_size, evaluations_bar)
        numbers = bound.numbers()
        card = {
            "first": first.source,
            "second": second.source,
            "estimator": OmegaConf.to_container(cfg.bound),
            "split": cfg.split,
            "images": bound.images,
            "timesteps": pair.timesteps,
            "evaluations_of_each": bound.plan.evaluations,
            "unit": unit,
            "precision": "float32",
        }
        shown = {name.replace("bound", "difference"): value for name, value in numbers.items() if "floor" not in name}
        named = {f"{cfg.split}/{name}": value for name, value in shown.items()}
        results.write_all(named, max(first.step, second.step), {f"{cfg.split}/difference": card})
    ours, theirs = (relative(path) for path in cfg.runs)
    print(f"bound of {ours} minus bound of {theirs}, {bound.images} {cfg.split} images, bits/dim")
    errors = (number(numbers[f"bound{error}"]) for error in ERRORS)
    ends = ("bound", "bound_population")
    intervals = (f"{numbers[f'{name}_low']:+.4f} to {numbers[f'{name}_high']:+.4f}" for name in ends)
    columns = ("difference", "± Monte Carlo", "± images", "95%, these images", "95%, new images")
    print_table(None, columns, [[f"{numbers['bound']:+.4f}", *errors, *intervals]], words=())
    better = ours if numbers["bound"] < 0 else theirs
    sure = numbers["bound_low"] > 0 or numbers["bound_high"] < 0
    words = f"{better} is better on these images" if sure else "neither is better by more than the interval"
    print(f"{words}; {bound.plan.evaluations:,} network evaluations of each model")
    if bound.plan.limited:
        print(limited_words(cfg.bound.stderr, numbers["bound_mc_se"]))
    print_files(run.summary_file)


def _declared(unit: str) -> dict[str, Declaration]:
    terms, of = bound_declarations(unit), ("prior", "steps", "decoder")
    whole = Declaration("bound of the first run minus that of the second", unit, "lower")
    return {"difference": whole} | {name: Declaration(f"difference of {terms[name].title}", unit) for name in of}
