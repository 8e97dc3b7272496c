"""Files of weights of other projects, read without running code that they may hold."""

import json
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from noising.errors import ConfigError
from noising.runs.sizes import UnfoldingError, require_archive_size
from noising.trained import digest

AVERAGED = ("ema_model", "ema", "model_ema", "model_ema1", "ema_state_dict")
RAW = ("net_model", "model", "net", "state_dict")
"""Entries of a training's file that hold a network's weights."""
AVERAGED_BRANCH, RAW_BRANCH = "ema_params/", "params/"
"""The beginnings of the names of weights in a flattened checkpoint of Flax."""
IN_A_FOLDER = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors")
PICKLED = (
    "is a pickle, which runs the code in it when it is opened: export it where its own code is, by `import pickle, "
    "safetensors.torch`, `net = pickle.load(open('{name}', 'rb'))['ema']`, "
    "`safetensors.torch.save_file(net.state_dict(), '{stem}.safetensors')`"
)


class ForeignWeights(NamedTuple):
    """The tensors of a file by their names there; config: the content of its config.json; entry: where they stood."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    entry: str | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def source(self) -> dict[str, Any]:
        """The file and the entry that the weights stood in, for a card."""
        return {"file": str(self.path), "sha256": digest(self.path), "entry": self.entry}


def read_weights(place: str, averaged: bool = True, entry: str | None = None) -> ForeignWeights:
    """Read a file of weights, or the one in a folder as diffusers writes it.

    averaged: of a training's file that holds both, the averaged weights, else the raw ones; entry: instead of either,
    the entry of this name. Raises ConfigError.
    """
    path = Path(place)
    if not path.exists():
        raise ConfigError(f"weights={place}: there is no such file or folder")
    config = None
    if path.is_dir():
        folder = next((path / name for name in ("unet", "transformer") if (path / name).is_dir()), path)
        found = [folder / name for name in IN_A_FOLDER if (folder / name).is_file()]
        if not found:
            raise ConfigError(f"weights={place}: expected {' or '.join(IN_A_FOLDER)} in {folder}")
        path = found[0]
    if (beside := path.parent / "config.json").is_file():
        config = _config(beside)
    if path.suffix == ".pkl":
        raise ConfigError(f"weights={place} {PICKLED.format(name=path.name, stem=path.stem)}")
    try:
        content = READERS.get(path.suffix, _torch_file)(path)
        tensors, chosen = _chosen(content, averaged, entry)
    except ValueError as error:
        raise ConfigError(f"weights={place}: {error}") from error
    return ForeignWeights(path, tensors, config, chosen)


def _config(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"weights: {path} is no JSON file ({error})") from error
    return content if isinstance(content, dict) else None


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it is no safetensors file, or a damaged one ({error})") from error


def _numpy_archive(path: Path) -> dict[str, Tensor]:
    try:
        require_archive_size(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UnfoldingError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # zip's, zlib's and numpy's own
        raise ValueError("it is damaged, or no .npz file of arrays of numbers (code in it was not run)") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise ValueError(f"its {name} holds no numbers that numpy knows: store it as float32")
    return {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in arrays.items()}


def _torch_file(path: Path) -> Any:
    try:
        require_archive_size(path)
        with (
            warnings.catch_warnings(action="ignore"),
            safe_globals([Namespace]),
        ):  # argparse's plain values
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnfoldingError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # the unpickler raises nearly anything
        named = re.search(r"GLOBAL (\S+)", str(error))
        fault = f"it holds {named[1]}" if named else "it is damaged, or no file of weights and plain values"
        raise ValueError(
            f"{fault} (code in it was not run): give a .safetensors file, or what torch.save writes of a state_dict"
        ) from error


READERS: dict[str, Callable[[Path], Any]] = {".safetensors": _safetensors, ".npz": _numpy_archive}
"""Readers by the end of a file's name; any other file is one of torch's."""


def _chosen(content: Any, averaged: bool, entry: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file's content, and the entry that they stood in."""
    if not isinstance(content, Mapping):
        raise ValueError("it holds no state dict")
    if entry is None and all(isinstance(value, Tensor) for value in content.values()):
        inside = {name.removeprefix("state_dict/"): value for name, value in content.items() if "state_dict/" in name}
        return _of_tree(inside or dict(content), averaged)
    for name in (AVERAGED if averaged else RAW) if entry is None else (entry,):
        held = content.get(name)
        if isinstance(held, Mapping) and "shadow_params" in held:
            return _by_order(held["shadow_params"], content.get("model")), name
        if isinstance(held, Mapping) and held and all(isinstance(value, Tensor) for value in held.values()):
            return dict(held), name
    if entry is not None:
        raise ValueError(f"it has no entry {entry} with weights, but {', '.join(map(str, [*content][:8]))}")
    kind, other = ("averaged", "false") if averaged else ("raw", "true")
    raise ValueError(f"it has no entry with {kind} weights, but {', '.join(map(str, content))}: try averaged={other}")


def _of_tree(tensors: dict[str, Tensor], averaged: bool) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a flattened Flax checkpoint without the name of their branch, and that name; others as they are.

    A file with one branch of weights holds those, whether they are averages or not.
    """
    held = [branch for branch in (AVERAGED_BRANCH, RAW_BRANCH) if any(name.startswith(branch) for name in tensors)]
    if not held:
        return tensors, None
    branch = held[0] if averaged else held[-1]
    inside = {name.removeprefix(branch): tensor for name, tensor in tensors.items() if name.startswith(branch)}
    return _of_tree(inside, averaged)[0], branch.rstrip("/")


def _by_order(averages: Any, model: Any) -> dict[str, Tensor]:
    """Averages that are a list in the order of the trained parameters, under those names, with the rest as it is."""
    if not isinstance(model, Mapping):
        raise ValueError("its averages have no names, and there is no entry `model` that has them")
    fixed = [name for name in model if name.endswith(("sigmas", "all_modules.0.W"))]  # stored, and not trained
    trained = [name for name in model if name not in fixed]
    if len(trained) != len(averages):
        raise ValueError(f"it holds {len(averages)} averages of {len(trained)} tensors")
    return {name: model[name] for name in fixed} | dict(zip(trained, averages, strict=True))
