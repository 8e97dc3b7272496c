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

from noising.commands.tables import print_files
from noising.errors import ConfigError, config_errors
from noising.interchange.diffusers_unet import MIRRORED, DiffusersUNet
from noising.interchange.layouts import LAYOUTS
from noising.models.unet import UNet
from noising.runs.folder import replacing
from noising.trained import TrainedRun, load

log = logging.getLogger(__name__)


def export(cfg: DictConfig, folder: Path) -> None:
    """Write the averaged weights of cfg.checkpoint to the folder, in the layout cfg.to."""
    if cfg.to is None:
        raise ConfigError("to is missing: add to=diffusers, openai, edm, score_sde, vdm or safetensors")
    trained = load(cfg.checkpoint)
    network = trained.denoiser.model
    if not isinstance(network, tuple(family for layout in LAYOUTS.values() for family in layout.families)):
        raise ConfigError(f"checkpoint={cfg.checkpoint} is of a {type(network).__name__}, which no layout here is of")
    config = OmegaConf.to_container(trained.config, resolve=True)
    assert isinstance(config, dict)
    with config_errors(f"to={cfg.to}"):
        if cfg.to == "diffusers":
            written = _diffusers(trained)
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


def _diffusers(trained: TrainedRun) -> dict[str, Any]:
    """A folder that ``DDPMPipeline.from_pretrained`` opens."""
    data, config, steps = trained.data, trained.config, trained.config.timesteps
    model = config.model
    layout = DiffusersUNet.fitting(trained.denoiser.model, {}, data.resolution)
    unet: UNet = layout.network
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    levels = trained.denoiser.schedule(times)
    labels = trained.denoiser.noise_label(levels).flatten()[1:]
    if not torch.allclose(labels, torch.arange(steps, dtype=torch.float64)):
        raise ValueError("diffusers counts steps from 0: it needs noise_label=discrete_step and timesteps=1000")
    if not torch.allclose(levels.alpha**2 + levels.sigma**2, torch.ones_like(levels.alpha)):
        raise ValueError("diffusers' DDPMPipeline takes variance-preserving schedules only")
    alpha_bar = levels.log_snr.flatten().sigmoid()
    prediction = {"Epsilon": "epsilon", "CleanImage": "sample", "Velocity": "v_prediction"}
    kind = type(trained.denoiser.parameterization).__name__
    variance = {"FixedSmall": "fixed_small", "FixedLarge": "fixed_large", "LearnedRange": "learned_range"}
    said = type(trained.denoiser.variance).__name__
    if kind not in prediction or said not in variance:
        raise ValueError(f"diffusers' DDPMScheduler has no {kind} with {said}")
    widths = [multiplier * model.width for multiplier in model.multipliers]
    attends = [data.resolution >> n in model.attention for n in range(len(widths))]
    head_width = _head_width(model, [w for w, here in zip(widths, attends, strict=True) if here] + widths[-1:])
    classes = unet.class_embedding.num_embeddings if unet.class_embedding is not None else None
    residual = model.get("residual_resampling", False)
    plain, resampling = ("ResnetDownsampleBlock2D", "resnet") if residual else ("DownBlock2D", "conv")
    downs = ["AttnDownBlock2D" if here else plain for here in attends]
    shape = {
        "_class_name": "UNet2DModel",
        "sample_size": data.resolution,
        "in_channels": data.channels,
        "out_channels": unet.last.out_channels,
        "block_out_channels": widths,
        "layers_per_block": model.blocks,
        "down_block_types": downs,
        "up_block_types": [MIRRORED[kind] for kind in reversed(downs)],
        "norm_num_groups": model.groups,
        "attn_norm_num_groups": model.groups,
        "norm_eps": model.get("norm_eps", 1e-5),
        "downsample_padding": 0 if model.get("corner_padding") else 1,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "flip_sin_to_cos": False,
        "freq_shift": 1 if model.get("endpoint") else 0,
        "resnet_time_scale_shift": "scale_shift" if model.get("scale_shift", True) else "default",
        "act_fn": "silu",
        "attention_head_dim": head_width,
        "dropout": model.dropout,
        "num_class_embeds": classes,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "mid_block_scale_factor": 1,
    }
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        "trained_betas": (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist(),
        "prediction_type": prediction[kind],
        "variance_type": variance[said],
        "clip_sample": config.sampler.get("clip") is not None,
        "clip_sample_range": config.sampler.get("clip") or 1.0,
    }
    return {
        "model_index.json": {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
        "unet/config.json": shape,
        "unet/diffusion_pytorch_model.safetensors": layout.write(unet.state_dict()),
        "scheduler/scheduler_config.json": scheduler,
    }


def _head_width(model: DictConfig, widths: list[int]) -> int | None:
    """diffusers' attention_head_dim: one width of heads for all levels; None for one head."""
    if model.get("head_width"):
        return int(model.head_width)
    if model.get("heads", 4) == 1:
        return None
    if len(set(widths)) > 1:
        raise ValueError(f"diffusers has heads of one width, here {model.heads} heads share {widths} channels")
    return widths[0] // int(model.heads)
