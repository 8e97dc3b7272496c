"""Composes a command's config as Hydra will, before Hydra does, so that what is wrong with the overrides is
one line.

Hydra's own failures name neither the nearest right name nor, in a sweep, the one choice of many that is
wrong; and it takes `+extra=1` in silence. The checks here need the same search path as Hydra's: the folder of
the configs, and the user's own (`--config-dir`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from noising.config.instantiate import check, nearest
from noising.config.secrets import require_no_secret
from noising.errors import ConfigError

version.setbase("1.3")  # not in `composer`: the other ranks of a run compose nothing before Hydra does
_DISPENSABLE = ("callbacks", "logger", "metrics")  # groups that a run may be without: ~metrics
_FAILURES = (HydraException, OmegaConfBaseException, ValueError)  # Hydra raises plain ValueErrors too


class Composer:
    """What Hydra would compose from overrides, and why it could not. Made by `composer`."""

    def __init__(self, hydra: Hydra, config_name: str) -> None:
        self._hydra = hydra
        self._loader = hydra.config_loader
        self._config_name = config_name

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        parser = OverridesParser.create(self._loader)
        parsed = []
        for text in overrides:
            try:
                parsed += parser.parse_overrides([text])
            except HydraException as error:
                why = str(error.__cause__ or error).splitlines()[0]
                raise ConfigError(f"cannot read the override {text!r}: {why}; write key=value") from error
        return parsed

    def compose(self, overrides: Sequence[str], *, multirun: bool = False) -> DictConfig:
        """The config with its `hydra` node; raises ConfigError, with the nearest right name, if it cannot."""
        parsed = self.parse(overrides)
        if not multirun:
            _refuse_several_values(parsed)
        self._check_choices(parsed)
        try:
            return self._compose(overrides, multirun)
        except _FAILURES as error:
            self._check_groups(parsed)
            self._check_keys(parsed, multirun)
            cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
            lines = [line.strip() for part in (error, cause) if part for line in str(part).splitlines()]
            raise ConfigError("; ".join(filter(None, lines)) or type(error).__name__) from error

    def _compose(self, overrides: Sequence[str], multirun: bool = False) -> DictConfig:
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        return self._hydra.compose_config(self._config_name, list(overrides), mode, validate_sweep_overrides=False)

    def check(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """Refuses what composes but no code reads, values of the wrong type, and `???` left unset.

        `overrides` are those `config` was composed from. Imports the config's `_target_`s: seconds, where
        torch is new.
        """
        bare = list(map(str, self._compose([])))
        known = {*bare, *self.groups()}
        for name in map(str, config):
            if name not in known:
                raise ConfigError(self._unknown(name, config, sorted(known)))
        for name in bare:
            if name not in list(config.keys()) and name not in _DISPENSABLE:  # `in` denies ???
                choices = self.options(name)
                wanted = f"={'|'.join(choices)}" if choices else "=..."
                raise ConfigError(f"{name} is left out, and nothing runs without it: add {name}{wanted}")
        for override in self.parse(overrides):
            self._refuse_unread(override, config)
        HydraConfig.instance().set_config(config)  # for ${hydra:...}
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(OmegaConf.select(config, "hydra.run.dir"))
        try:
            plain = {name: _resolved(config, name) for name in config if name != "hydra"}
        except OmegaConfBaseException as error:
            raise ConfigError("; ".join(line.strip() for line in str(error).splitlines()[:2])) from error
        for path in _missing(plain):
            raise ConfigError(f"{path} has no value: add {path}=...")
        check(plain, "")
        require_no_secret(config)

    def _refuse_unread(self, override: Override, config: DictConfig) -> None:
        """`+performance.compil=true`: a struct that already has options takes no others.

        A node with a `_target_` is left to its constructor's signature, and a mapping of nodes (callbacks) is
        open.
        """
        key = override.key_or_group
        if not (override.is_add() or override.is_force_add()) or self.options(key) or override.is_hydra_override():
            return
        parent, _, name = key.rpartition(".")
        struct = OmegaConf.select(config, parent) if parent else None
        if not isinstance(struct, DictConfig) or "_target_" in struct or isinstance(struct.get(name), DictConfig):
            return
        rest = [text for text in config.hydra.overrides.task if text != override.input_line]
        others = OmegaConf.select(self._compose(rest), parent)
        if isinstance(others, DictConfig) and len(others) > 0 and name not in others:
            raise ConfigError(self._unknown(key, config, [f"{parent}.{other}" for other in map(str, others)]))

    def groups(self) -> list[str]:
        """The config groups at the top, without Hydra's."""
        return [name for name in self._loader.get_group_options("", ObjectType.GROUP) if name != "hydra"]

    def options(self, group: str) -> list[str]:
        """The choices of a group; empty if there is no such group."""
        return self._loader.get_group_options(group, ObjectType.CONFIG) if group else []

    def _check_choices(self, parsed: Sequence[Override]) -> None:
        for override in parsed:
            options = self.options(override.key_or_group)
            if not options or override.is_delete():
                continue
            values = _choices(override)
            for value in values:
                if not isinstance(value, str | list):
                    shown = "null" if value is None else value
                    raise ConfigError(
                        f"{override.key_or_group}={shown}: no such choice (choices: {', '.join(options)})"
                    )
                for name in value if isinstance(value, list) else [value]:
                    if isinstance(name, str) and name not in options and not name.startswith(("/", "_")):
                        right = nearest(name, options)
                        hint = f"; did you mean {right}?" if right else ""
                        raise ConfigError(
                            f"{override.key_or_group}={name}: no such choice{hint} (choices: {', '.join(options)})"
                        )

    def _check_groups(self, parsed: Sequence[Override]) -> None:
        """Called when composition failed: finds the override of a group that other commands have."""
        choices = [str(group) for group in self._compose([]).hydra.runtime.choices]
        for override in parsed:
            group = override.get_key_element().lstrip("+~")
            if self.options(override.key_or_group) and group not in choices and not override.is_add():
                own = ", ".join(sorted(name for name in choices if not name.startswith("hydra/")))
                raise ConfigError(f"{group}: this command takes no such group (it takes: {own or 'none'})")

    def _check_keys(self, parsed: Sequence[Override], multirun: bool) -> None:
        """Called when composition failed: finds the override whose key is not there."""
        groups = [o.input_line for o in parsed if o.input_line and self.options(o.key_or_group)]
        try:
            config = self._compose(groups, multirun)
        except _FAILURES:
            return
        for override in parsed:
            if override.is_add() or override.is_force_add() or self.options(override.key_or_group):
                continue
            found: Any = config
            done: list[str] = []
            for part in override.key_or_group.split("."):
                if isinstance(found, DictConfig) and part not in list(found.keys()):  # `in` denies ???
                    key = ".".join([*done, part])
                    siblings = [".".join([*done, name]) for name in map(str, found)]
                    raise ConfigError(self._unknown(key, config, siblings + (self.groups() if not done else [])))
                found = found._get_node(part) if isinstance(found, DictConfig) else None
                done.append(part)

    def _unknown(self, key: str, config: DictConfig, siblings: Sequence[str]) -> str:
        """`key: no such option`, and the same name elsewhere, or the most alike one, beside it first."""
        if key in config.hydra.runtime.choices and (options := self.options(key)):
            return f"{key}: none is chosen; add {key}={options[0]}, or another of {', '.join(options)}"
        parent, _, name = key.rpartition(".")
        paths = [path for path in _paths(config) if path != key and not path.startswith("hydra")]
        last_names = {path: path.rpartition(".")[2] for path in paths}
        right = next((path for path, last in last_names.items() if last == name), None)
        others = [sibling.rpartition(".")[2] for sibling in siblings if sibling != key]  # a group of other commands
        if not right and (sibling := nearest(name, others)):
            right = f"{parent}.{sibling}" if parent else sibling
        if not right and (last := nearest(name, last_names.values())):
            right = next(path for path in paths if last_names[path] == last)
        return f"{key}: no such option; " + (f"did you mean {right}?" if right else "see --cfg job for all options")


@contextmanager
def composer(config_name: str, conf: str, config_dir: str | None) -> Iterator[Composer]:
    """A Composer over the folder `conf` (absolute, or pkg://) and the user's own folder; leaves Hydra
    uninitialised.
    """
    if not conf.startswith("pkg://") and not Path(conf).is_dir():
        raise ConfigError(f"--config-path: there is no folder {conf}")
    search_path = create_config_search_path(conf)
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir: there is no folder {config_dir}")
        place = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", place, SearchPathQuery(provider="schema"))
    hydra = Hydra.create_main_hydra2(task_name=config_name, config_search_path=search_path)
    before = HydraConfig.instance().cfg
    try:
        yield Composer(hydra, config_name)
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


def _refuse_several_values(parsed: Sequence[Override]) -> None:
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: several values; add -m to sweep over them, or write a list as key=[1,2]"
            )


def _choices(override: Override) -> list[Any]:
    """The value of an override, or every value of a sweep over a finite set."""
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else []


def _resolved(config: DictConfig, name: Any) -> Any:
    value = "???" if OmegaConf.is_missing(config, name) else config[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Paths of the values left `???`."""
    if node == "???":
        yield path
    for name, value in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else []):
        yield from _missing(value, f"{path}.{name}" if path else str(name))


def _paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all options, without resolving interpolations."""
    if isinstance(config, DictConfig) and not config._is_none() and not config._is_missing():
        for name in map(str, config):
            yield f"{prefix}{name}"
            yield from _paths(config._get_node(name), f"{prefix}{name}.")
