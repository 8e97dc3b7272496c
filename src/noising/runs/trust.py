"""The gate for what is read from a run's folder: a file from a stranger must not choose what is run."""

import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

import noising
from noising.config import choices
from noising.config.instantiate import locate
from noising.config.leaves import leaves
from noising.config.secrets import is_reference, variable
from noising.errors import ConfigError

TRUSTED = ("torch.optim", "torchmetrics.image", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
"""Modules of which every public class of KINDS may be named, besides what conf/ names, if no option is the path of a
file: torchmetrics unpickles weights from there.
"""

KINDS = frozenset(
    (
        *("torch.nn.modules.module.Module", "torch.utils.data.dataset.Dataset", "torchmetrics.metric.Metric"),
        *("torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
        *(f"{name}.callbacks.callback.Callback" for name in ("lightning.pytorch", "pytorch_lightning")),
        *(f"{name}.loggers.logger.Logger" for name in ("lightning.pytorch", "pytorch_lightning")),
    )
)
"""Bases, besides noising's own, of the classes that other packages may give: their functions act for whoever calls."""

VARIABLE = "NOISING_ALLOW"
"""The environment's list of names that a run's files may name, separated by commas: modules, and variables."""

_PROGRAMS = frozenset(("conftest", "scripts", "setup", "tests"))
"""Modules, of packages too, that are programs, besides `train`: to import one would run it."""


class Source(NamedTuple):
    """The origin of a config: it is named in the message, and decides which modules are the user's own."""

    name: str
    what: str
    place: Path | None
    """The run's folder or checkpoint: modules around it are not the user's."""


_ALLOWS = threading.RLock()


@contextmanager
def allowing(names: str) -> Iterator[None]:
    """Within it, these names are allowed too, separated by commas; other processes that it starts inherit them.

    One thread at a time: the environment is the process's.
    """
    if not names:
        yield
        return
    with _ALLOWS:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = ",".join(filter(None, (before, names)))
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before


def allowed_names() -> list[str]:
    """Modules and variables of the environment that the user trusts a run's files with."""
    names = (name.strip(" '\"[]") for name in os.environ.get(VARIABLE, "").split(","))
    return [name for name in names if name and not _within(name, ("noising",))]


def require_trusted(config: Any, source: str, place: str | Path | None = None) -> None:
    """Raise ConfigError if a config names in a `_target_` what is no choice of conf/, nor allowed.

    Allowed are the classes of KINDS of TRUSTED and of the modules that NOISING_ALLOW names, and what is defined in
    modules of the current folder, since the user wrote them. Other names of noising's cannot be allowed: some of its
    functions write files or start programs.

    source: where the config is from, for the message; place: the run's folder or checkpoint.
    """
    if not isinstance(config, Mapping):  # OmegaConf would read a string as YAML, and find other nodes in it
        raise ConfigError(f"{source}: its config is not a mapping: it was not written by noising")
    found = [*leaves(config)]
    for path, value in found:
        # a run stores its config resolved; ${oc.create:...} would make nodes after this check
        for text in (path, value):
            if isinstance(text, str) and "${" in text and not is_reference(path, text):
                raise ConfigError(f"{source}: its config holds an interpolation ({text[:40]!r}), which no run stores")
    require_trusted_targets(found, Source(source, "its config", None if place is None else Path(place)))


def with_variables_withheld(config: Any, path: str = "") -> Any:
    """The config with references to variables of the environment that are not allowed made errors where one is read."""
    if isinstance(config, Mapping):
        return {key: with_variables_withheld(value, f"{path}.{key}") for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [with_variables_withheld(value, path) for value in config]
    if isinstance(config, str) and is_reference(path, config) and variable(config) not in allowed_names():
        return f"${{withheld:{variable(config)}}}"
    return config


def _withhold(name: str) -> None:
    raise ConfigError(f"the run's files read the environment variable {name}: if you trust them, add allow={name}")


OmegaConf.register_new_resolver("withheld", _withhold, replace=True)


def require_trusted_targets(found: Sequence[tuple[str, Any]], source: Source) -> None:
    """Raise ConfigError if a `_target_` among paths and values names what `require_trusted` refuses."""
    reads_files = {path.rpartition(".")[0] for path, value in found if path.endswith("_path") and value is not None}
    for path, value in found:
        node, _, name = path.rpartition(".")
        if name == "_target_":
            why = _refusal(str(value), source, public=() if node in reads_files else TRUSTED)
            if why:
                raise ConfigError(f"{source.name}: {source.what} names {value}, which {why}")


def _refusal(target: str, source: Source, public: Sequence[str]) -> str:
    """The reason why a target may not be named, after "which"; "" if it may. public: modules of TRUSTED that count."""
    first, *_ = parts = target.split(".")
    if _defined_as(target) in choices.targets() and (first == "noising" or public):
        return ""
    if first in sys.stdlib_module_names:
        return "is part of Python: no run stores it"
    if first == "train" or _PROGRAMS.intersection(parts) or any(part.startswith("__") for part in parts):
        return "is a program or an internal name: no run stores it"
    if first == "noising":
        return "is not a choice that noising offers: no run of this version stores it"
    if _is_own(first, source.place):
        found = locate(target, source.name)
        # `mine.os.system` begins with a trusted module, and leaves it by what that has imported
        own = _within(str(getattr(found, "__module__", "")), (first,))
        return "" if own else f"is not part of noising, and is not defined in your {first}"
    allowed = allowed_names()
    trusted = (*public, *allowed)
    if not _within(target, trusted) or (_within(target, public) and not _within(target, allowed) and "._" in target):
        return f'is not part of noising: if you trust it, add allow={first} (in Python, allow="{first}")'
    found = locate(target, source.name)
    if _within(str(getattr(found, "__module__", "")), trusted) and _is_of_kinds(found):
        return ""
    return (
        "is not part of noising: from other packages, a run may name only networks, data sets, metrics, optimizers, "
        "callbacks, loggers and classes made for noising"
    )


def _defined_as(target: str) -> str:
    """The name under which a public name of noising's, as noising.Cosine, is defined; any other as it is."""
    package, _, name = target.partition(".")
    if package != "noising" or name not in dir(noising):
        return target
    found = getattr(noising, name)
    return f"{found.__module__}.{getattr(found, '__qualname__', name)}"


def _is_of_kinds(found: Any) -> bool:
    """Whether it is a class of KINDS or with a base of noising's; by names, since torch may not be there yet."""
    bases = inspect.getmro(found) if inspect.isclass(found) else ()
    names = [f"{base.__module__}.{base.__qualname__}" for base in bases if not issubclass(base, BaseException)]
    return any(name in KINDS or name.startswith("noising.") for name in names)


def _is_own(first: str, place: Path | None) -> bool:
    """Whether importing the module `first` would run a file of the current folder, and not one that came with a run."""
    files = [file for file in (Path(f"{first}.py"), Path(first, "__init__.py")) if file.is_file()]
    if not files:
        return False
    if place is not None:
        run, here = place.resolve(), Path.cwd()
        if here.is_relative_to(run) or run.is_relative_to(here / first):
            return False
    try:
        spec = importlib.util.find_spec(first)  # a name without a dot: nothing is imported
        return any(os.path.samefile(file, str(spec.origin)) for file in files) if spec else False
    except (OSError, ValueError, ImportError):  # no file, or a module without a spec
        return False


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
