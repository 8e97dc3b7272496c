"""Writing a run's weights in the layout of another project, compared with the run before they are in place."""

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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

log = logging.getLogger(__name__)


def export(cfg: DictConfig, folder: Path) -> None:
    """Write the averaged weights of cfg.checkpoint to the folder, in the layout cfg.to."""
    if cfg.to is None:
        layouts = "diffusers, openai, edm, edm2, score_sde, uvit, jit, dit, vdm or safetensors"
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
            file = "model.safetensors" if cfg.to == "safetensors" else LAYOUTS[cfg.to].file
            written = {file: weights, "config.json": config}
    for name, content in written.items():
        encoded = json.dumps(content, indent=2).encode() if name.endswith(".json") else _encoded(name, content)
        with replacing(folder / name) as target:
            target.write(encoded)
    print_files(*(folder / name for name in written))


def _encoded(name: str, tensors: Mapping[str, Tensor]) -> bytes:
    """A file of tensors, by its name as a safetensors file or as an archive of numpy's arrays."""
    if name.endswith(".npz"):
        archive = io.BytesIO()
        arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
        np.savez(archive, **arrays)
        return archive.getvalue()
    plain = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    return save(plain, metadata={"format": "pt"})


def _original(cfg: DictConfig, trained: TrainedRun) -> dict[str, Tensor]:
    """The state dict under the names of the network's authors."""
    facts = {name: value for name, value in cfg.file.items() if value is not None}
    options = {str(name): value for name, value in trained.config.model.items()}
    network = trained.denoiser.model
    layout = LAYOUTS[cfg.to].fitting(network, options, trained.data.resolution, **facts)
    there = layout.write(network.state_dict())
    back = layout.read(there)
    assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())
    scale, own = layout.image_scale, getattr(trained.denoiser.schedule.geometry, "image_scale", 1.0)
    if scale != own:
        log.warning("to=%s: its code scales images by %.6g, and this network was trained with %.6g", cfg.to, scale, own)
    return {**there, **layout.with_schedule(trained.denoiser.schedule)}
