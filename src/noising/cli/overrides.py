"""From the words of a command line to a config, or to the one line that says what is wrong with them.

Hydra's own failures name neither the nearest right name nor, in a sweep, the one choice of many that is wrong; and it
takes `+extra=1` in silence. A run's config is composed once. Only to find the words for a mistake is more composed.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import noising.cli.folders  # noqa: F401 - conf/ uses its resolvers
from noising.cli.commands import COMMANDS
from noising.config.instantiate import check, locate, nearest, parameters
from noising.config.leaves import leaves
from noising.config.secrets import require_no_secret
from noising.errors import ConfigError

_DISPENSABLE = ("augmentation", "callbacks", "logger", "metrics")
"""Groups that a run may be without: ~metrics, metrics=null."""

_FAILURES = (HydraException, OmegaConfBaseException, ValueError)  # Hydra raises plain ValueErrors too


class Composer:
    """Composes a command's config by Hydra, and finds the words for what is wrong. Made by `composer`."""

    def __init__(self, command: str, config_name: str) -> None:
        self.command = command
        self._config_name = config_name
        self._loader = GlobalHydra.instance().config_loader()

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Raise ConfigError for a word that Hydra's grammar does not have."""
        parser = OverridesParser.create(self._loader)
        parsed = []
        for text in overrides:
            try:
                parsed += parser.parse_overrides([text])
            except HydraException as error:
                why = str(error.__cause__ or error).splitlines()[0]
                raise ConfigError(f"cannot read the override {text!r}: {why}; write key=value") from error
        return parsed

    def with_parts_anew(self, overrides: Sequence[str]) -> list[str]:
        """The overrides, where `model._target_=mine.Net` begins a part without the options of the choice it replaces.

        In Hydra's words: `~model` goes before, and what is set within the part is added. `data._target_` of a torch
        Dataset is that of data=torch_dataset. A Trainer is left as it is: its options are a run's.
        """
        words = [str(word) for word in overrides]
        parsed = dict(zip(words, self.parse(words), strict=True))
        parts = [one.key_or_group.removesuffix("._target_") for one in parsed.values() if _names_class(one)]
        begun: list[str] = []
        for part in sorted(dict.fromkeys(parts), key=lambda name: name.count(".")):
            if any(part.startswith(f"{whole}.") for whole in begun):  # a part of a part that begins anew
                continue
            within = [word for word in words if _is_within(parsed[word], [part])]
            target = next(parsed[word] for word in within if parsed[word].key_or_group == f"{part}._target_")
            rest = [parsed[word] for word in words if not _is_within(parsed[word], parts)]
            replaced = self._target_of(part, each_choice_once(rest)[0])
            if f"~{part}" not in words and (replaced is None or [*_values(target)] == replaced):
                continue
            others = [word for word in words if word not in within and parsed[word].key_or_group != part]
            added = [f"++{word.lstrip('+')}" for word in within if not parsed[word].is_delete()]
            if part == "data" and (moved := _of_torch_dataset(added, target)):
                added = moved
            elif replaced or f"~{part}" in words:
                others.append(f"~{part}")
            begun.append(part)
            words = [*others, *added]
            parsed |= dict(zip(words, self.parse(words), strict=True))
        return words

    def _target_of(self, part: str, overrides: Sequence[str]) -> list[str] | None:
        """The `_target_` that a part has by these overrides; empty if the part is null, None if there is none."""
        try:
            config = self._compose(overrides)
            parent, _, name = part.rpartition(".")
            node = OmegaConf.select(config, parent) if parent else config
            if not isinstance(node, DictConfig) or (name not in list(node.keys()) and not self.options(part)):
                return None
            value = node._get_node(name)
            if not isinstance(value, DictConfig) or value._is_none() or value._is_missing():
                return []
            return [str(value["_target_"])] if "_target_" in value else None
        except _FAILURES:
            return None

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config with its `hydra` node; raises ConfigError, with the nearest right name, if there is none."""
        parsed = self.parse(overrides)
        self._require_choices(parsed)
        try:
            return self._compose(overrides)
        except _FAILURES as error:
            self._require_groups(parsed)
            self._require_keys(parsed)
            cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
            lines = [line.strip() for part in (error, cause) if part for line in str(part).splitlines()]
            raise ConfigError("; ".join(filter(None, lines)) or type(error).__name__) from error

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return compose(self._config_name, list(overrides), return_hydra_config=True)

    def check(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """Refuse what composes but no code reads, values of the wrong type, and `???` left unset.

        overrides: those the config was composed from. Imports the `_target_`s of the groups that the command reads:
        seconds, where torch is new.
        """
        known = {*self._declared, *self.groups()}
        for name in map(str, config):
            if name not in known and name != "hydra":
                raise ConfigError(self._unknown(name, config, sorted(known)))
        for name in self._declared:
            if name not in list(config.keys()) and name not in _DISPENSABLE:  # `in` denies ???
                choices = self.options(name)
                wanted = f"={'|'.join(choices)}" if choices else "=..."
                raise ConfigError(f"{name} has been removed, but every run needs it: add {name}{wanted}")
        parsed = self.parse(overrides)
        for override in parsed:
            self._refuse_unread(override, config)
        given = {override.key_or_group for override in parsed if override.value() is not None}
        if given >= {"trainer.max_epochs", "trainer.max_steps"}:
            raise ConfigError("trainer.max_epochs and trainer.max_steps: give one of them, and null for the other")
        HydraConfig.instance().set_config(config)  # for ${hydra:...}
        OmegaConf.set_readonly(config.hydra, False)  # which set_config has done
        with open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(OmegaConf.select(config, "hydra.run.dir"))
        try:
            plain = {str(name): _resolved(config, name) for name in config if name != "hydra"}
        except OmegaConfBaseException as error:
            raise ConfigError("; ".join(line.strip() for line in str(error).splitlines()[:2])) from error
        for path, value in leaves(plain):
            if value == "???":
                raise ConfigError(f"{path} has no value: add {path}=...")
        from noising.config.options import check_options  # here: --help needs no pydantic

        for option, value in check_options(self.command, plain).items():
            OmegaConf.update(config, option, value)
        reads = COMMANDS[self.command].reads or plain
        check({name: node for name, node in plain.items() if name in reads}, "")
        require_no_secret(config)

    def _refuse_unread(self, override: Override, config: DictConfig) -> None:
        """Refuse `+performance.compil=true`: a struct that already has options takes no others.

        A node with a `_target_` is left to its constructor's signature, and a mapping of nodes (callbacks) is open.
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

    @cached_property
    def _declared(self) -> list[str]:
        """The options and groups that the command's own config has at the top, without a choice of null."""
        return [name for name in dict.fromkeys(self._declared_in(self._config_name)) if name != "hydra"]

    def _declared_in(self, config_name: str) -> Iterator[str]:
        source = next(source for source in self._loader.get_sources() if source.is_config(config_name))
        config: Any = source.load_config(config_name).config
        for entry in config.get("defaults", []):
            if isinstance(entry, str):
                if entry != "_self_":
                    yield from self._declared_in(entry)
                continue
            for group, choice in entry.items():
                if choice is not None:
                    yield str(group).removeprefix("override ").rpartition("@")[2]
        yield from (str(name) for name in config if name != "defaults")

    def groups(self) -> list[str]:
        """The config groups at the top, without Hydra's."""
        return [name for name in self._listed("", ObjectType.GROUP) if name != "hydra"]

    def options(self, group: str) -> list[str]:
        """The choices of a group; empty if there is no such group."""
        return self._listed(group, ObjectType.CONFIG) if group else []

    def _listed(self, group: str, kind: ObjectType) -> list[str]:
        """The names within a group, as the loader's get_group_options, which copies all sources for each call."""
        sources = [source for source in self._loader.get_sources() if source.is_group(group)]
        return sorted({name for source in sources for name in source.list(group, kind)})

    def _require_choices(self, parsed: Sequence[Override]) -> None:
        """Raise ConfigError for a choice that its group does not have, every one of a sweep too."""
        for override in parsed:
            options = self.options(override.key_or_group)
            if not options or override.is_delete():
                continue
            for value in _values(override):
                if not isinstance(value, str | list):
                    shown = "null" if value is None else value
                    raise ConfigError(
                        f"{override.key_or_group}={shown}: no such choice (choices: {', '.join(options)})"
                    )
                for name in value if isinstance(value, list) else [value]:
                    if isinstance(name, str) and name not in options:  # a path would be another file's config
                        right = nearest(name, options)
                        hint = f"; did you mean {right}?" if right else ""
                        raise ConfigError(
                            f"{override.key_or_group}={name}: no such choice{hint} (choices: {', '.join(options)})"
                        )

    def _require_groups(self, parsed: Sequence[Override]) -> None:
        """After composition failed: find the override of a group that only other commands have."""
        # a group of several choices (logger: [csv]) is not among Hydra's runtime choices
        choices = {*map(str, self._compose([]).hydra.runtime.choices), *self._declared}
        for override in parsed:
            group = override.get_key_element().lstrip("+~")
            if self.options(override.key_or_group) and group not in choices and not override.is_add():
                own = ", ".join(sorted(name for name in choices if self.options(name) and "hydra/" not in name))
                raise ConfigError(f"{group}: this command takes no such group (it takes: {own or 'none'})")

    def _require_keys(self, parsed: Sequence[Override]) -> None:
        """After composition failed: find the override whose key is not there."""
        groups = [o.input_line for o in parsed if o.input_line and self.options(o.key_or_group)]
        try:
            config = self._compose(groups)
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
        # of a group that stands elsewhere too, group@place
        placed = (choice for choice in config.hydra.runtime.choices if choice.partition("@")[2].endswith(f".{name}"))
        right = next(placed, None) or next((path for path, last in last_names.items() if last == name), None)
        others = [sibling.rpartition(".")[2] for sibling in siblings if sibling != key]  # a group of other commands
        if not right and (sibling := nearest(name, others)):
            right = f"{parent}.{sibling}" if parent else sibling
        if not right and (last := nearest(name, last_names.values())):
            right = next(path for path in paths if last_names[path] == last)
        return f"{key}: no such option; " + (f"did you mean {right}?" if right else "see --cfg job for all options")


class _ConfigDir(SearchPathPlugin):
    """`--config-dir`: a folder of the user's own configs on Hydra's search path, behind conf/."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("command-line", f"file://{self.folder}", SearchPathQuery(provider="schema"))


@contextmanager
def composer(
    command: str, conf: str, config_dir: str | None = None, config_name: str | None = None
) -> Iterator[Composer]:
    """Within it Hydra composes a command's config, and what the user's own folder adds; afterwards Hydra is as before.

    conf: a folder, or pkg://MODULE; config_name: the config in it, by default the command's. Raises ConfigError if
    there is no such folder.
    """
    for flag, folder in (("--config-path", conf), ("--config-dir", config_dir)):
        if folder is not None and not folder.startswith("pkg://") and not Path(folder).is_dir():
            raise ConfigError(f"{flag}: there is no folder {folder}")
    Plugins.instance().register(_ConfigDir)
    _ConfigDir.folder = Path(config_dir).absolute() if config_dir is not None else None
    options = {"job_name": command, "version_base": "1.3"}
    initialized: AbstractContextManager[None] = (
        initialize_config_module(conf.removeprefix("pkg://"), **options)
        if conf.startswith("pkg://")
        else initialize_config_dir(str(Path(conf).absolute()), **options)
    )
    before = HydraConfig.instance().cfg
    try:
        with initialized:
            sources = GlobalHydra.instance().config_loader().get_sources()
            if config_name is not None and not any(source.is_config(config_name) for source in sources):
                raise ConfigError(f"--config-name: there is no config {config_name} in {conf}")
            yield Composer(command, config_name or command)
    finally:
        HydraConfig.instance().cfg = before
        _ConfigDir.folder = None


def without_null_groups(words: Iterable[str]) -> list[str]:
    """The words, `metrics=null` as `~metrics`: Hydra has no null for a group that its config chooses."""
    nulls = {f"{group}=null": f"~{group}" for group in _DISPENSABLE}
    return [nulls.get(word, word) for word in words]


def each_choice_once(parsed: Sequence[Override]) -> list[list[str]]:
    """Overrides of a few single runs which together hold every value of every sweep.

    The sum, not the product, of the numbers of values: a sweep of thousands of jobs is checked in seconds. A sweep over
    an interval (Optuna's) has no values to check and is left out.
    """
    fixed: list[list[str]] = []
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append([override.input_line or f"{key}={override.get_value_element_as_str()}"])
        elif override.is_discrete_sweep():
            fixed.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    first = [values[0] for values in fixed]
    runs = [first]
    for place, values in enumerate(fixed):
        runs += [[*first[:place], value, *first[place + 1 :]] for value in values[1:]]
    return runs


def _names_class(override: Override) -> bool:
    """Whether an override names the class of a part whose other options are that class's."""
    part, _, name = override.key_or_group.rpartition(".")
    wrong = override.is_delete() or override.is_hydra_override() or (override.is_add() and not override.is_force_add())
    return name == "_target_" and part not in ("", "trainer") and not wrong


def _is_within(override: Override, parts: Iterable[str]) -> bool:
    """Whether an override sets an option of one of the parts."""
    return any(override.key_or_group.startswith(f"{part}.") for part in parts)


def _of_torch_dataset(words: Sequence[str], target: Override) -> list[str]:
    """The words that set options of `data`, as those of data=torch_dataset around a torch Dataset; empty for others."""
    from torch.utils.data import Dataset  # here: --help needs no torch

    from noising.data.image_data import ImageData
    from noising.data.torch_dataset import TorchDataset

    kinds = [locate(name, "data") for name in _values(target)]
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Dataset) for kind in kinds):
        return []
    if any(issubclass(kind, ImageData) for kind in kinds):  # type: ignore[arg-type]
        return []
    around = set(parameters(TorchDataset)) - {"dataset"}.union(*(parameters(kind) for kind in kinds))
    moved = ["data=torch_dataset"]
    for word in words:
        option = word.removeprefix("++data.").partition("=")[0].partition(".")[0]
        moved.append(word if option in (*around, "dataset") else word.replace("++data.", "++data.dataset.", 1))
    return moved


def _values(override: Override) -> Iterable[Any]:
    """The value of an override, or every value of a sweep over a finite set."""
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else []


def _resolved(config: DictConfig, name: Any) -> Any:
    value = "???" if OmegaConf.is_missing(config, name) else config[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all options, without resolving interpolations."""
    if isinstance(config, DictConfig) and not config._is_none() and not config._is_missing():
        for name in map(str, config):
            yield f"{prefix}{name}"
            yield from _paths(config._get_node(name), f"{prefix}{name}.")
