"""Writing a run's weights in the layout of another project, compared with the run before they are in place."""

import json
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import Tensor

from noising.commands.diffusers_export import diffusers_folder
from noising.commands.tables import print_files
from noising.errors import ConfigError, config_errors
from noising.interchange.layouts import LAYOUTS
from noising.runs.folder import replacing
from noising.trained import TrainedRun, load


def export(cfg: DictConfig, folder: Path) -> None:
    """Write the averaged weights of cfg.checkpoint to the folder, in the layout cfg.to."""
    if cfg.to is None:
        layouts = "diffusers, openai, edm, edm2, score_sde, uvit, jit, dit or safetensors"
        raise ConfigError(f"to is missing: add to={layouts}")
    trained = load(cfg.checkpoint)
    network = trained.denoiser.model
    if not isinstance(network, tuple(family for layout in LAYOUTS.values() for family in layout.families)):
        raise ConfigError(f"checkpoint={cfg.checkpoint} is of a {type(network).__name__}, which no layout here is of")
    config = OmegaConf.to_container(trained.config, resolve=True)
    assert isinstance(config, dict)
    with config_errors(f"to={cfg.to}"):
        if cfg.to == "diffusers":
            written = diffusers_folder(trained, cfg.unchecked)
        else:
            weights = network.state_dict() if cfg.to == "safetensors" else _original(cfg, trained)
            written = {"model.safetensors": weights, "config.json": config}
    for name, content in written.items():
        if name.endswith(".safetensors"):
            plain = {key: tensor.contiguous().clone() for key, tensor in content.items()}
            encoded = save(plain, metadata={"format": "pt"})
        else:
            encoded = json.dumps(content, indent=2).encode()
        with replacing(folder / name) as target:
            target.write(encoded)
    print_files(*(folder / name for name in written))


def _original(cfg: DictConfig, trained: TrainedRun) -> dict[str, Tensor]:
    """The state dict under the names of the network's authors."""
    facts = {name: value for name, value in cfg.file.items() if value is not None}
    options = {str(name): value for name, value in trained.config.model.items()}
    network = trained.denoiser.model
    layout = LAYOUTS[cfg.to].fitting(network, options, trained.data.resolution, **facts)
    there = layout.write(network.state_dict())
    back = layout.read(there)
    assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())
    return there
