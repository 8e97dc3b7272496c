"""A run as diffusers opens it: the folder of a pipeline or of a network, with the scheduler of its theory."""

import logging
from typing import Any

import torch
from omegaconf import DictConfig

from noising.interchange.diffusers_dit import DiffusersDiT
from noising.interchange.diffusers_unet import MIRRORED, DiffusersUNet
from noising.models.dit import DiT
from noising.models.unet import UNet
from noising.trained import TrainedRun

log = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model.safetensors"
SINUSOIDS = (
    "diffusers' DiT has the sinusoids of model.endpoint=true, this run has others; unchecked=true writes it all the "
    "same: then set `block.norm1.emb.time_proj.downscale_freq_shift = 0` in each of its `transformer_blocks`"
)


def diffusers_folder(trained: TrainedRun, unchecked: bool = False) -> dict[str, Any]:
    """The files of a folder that diffusers opens, by name: ``DDPMPipeline`` for a U-Net, ``DiTTransformer2DModel``.

    unchecked: also a network whose outputs would differ there. Raises ValueError for what diffusers has no place for.
    """
    network, scheduler = trained.denoiser.model, "scheduler/scheduler_config.json"
    if isinstance(network, DiT):
        of_dit = DiffusersDiT.fitting(network, {}, trained.data.resolution)
        if not network.endpoint:
            if not unchecked:
                raise ValueError(SINUSOIDS)
            log.warning(SINUSOIDS)
        weights = of_dit.write(network.state_dict())
        return {"config.json": of_dit.config(), WEIGHTS: weights, scheduler: _scheduler(trained)}
    of_unet = DiffusersUNet.fitting(network, {}, trained.data.resolution)
    return {
        "model_index.json": {
            "_class_name": "DDPMPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
        "unet/config.json": _unet(trained, of_unet.network),
        f"unet/{WEIGHTS}": of_unet.write(of_unet.network.state_dict()),
        scheduler: _scheduler(trained),
    }


def _scheduler(trained: TrainedRun) -> dict[str, Any]:
    """The options of ``DDPMScheduler`` for the theory of a run."""
    steps, clip = trained.config.timesteps, trained.config.sampler.get("clip")
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    levels = trained.denoiser.schedule(times)
    labels = trained.denoiser.noise_label(levels).flatten()[1:]
    if not torch.allclose(labels, torch.arange(steps, dtype=torch.float64)):
        raise ValueError("diffusers counts steps from 0: it needs noise_label=discrete_step and timesteps=1000")
    if not torch.allclose(levels.alpha**2 + levels.sigma**2, torch.ones_like(levels.alpha)):
        raise ValueError("diffusers' DDPMScheduler takes variance-preserving schedules only")
    alpha_bar = levels.log_snr.flatten().sigmoid()
    prediction = {"Epsilon": "epsilon", "CleanImage": "sample", "Velocity": "v_prediction"}
    kind = type(trained.denoiser.parameterization).__name__
    variance = {"FixedSmall": "fixed_small", "FixedLarge": "fixed_large", "LearnedRange": "learned_range"}
    said = type(trained.denoiser.variance).__name__
    if kind not in prediction or said not in variance:
        raise ValueError(f"diffusers' DDPMScheduler has no {kind} with {said}")
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        "trained_betas": (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist(),
        "prediction_type": prediction[kind],
        "variance_type": variance[said],
        "clip_sample": clip is not None,
        "clip_sample_range": clip or 1.0,
    }


def _unet(trained: TrainedRun, unet: UNet) -> dict[str, Any]:
    """The options of ``UNet2DModel`` for the network of a run."""
    data, model = trained.data, trained.config.model
    widths = [multiplier * model.width for multiplier in model.multipliers]
    attends = [data.resolution >> n in model.attention for n in range(len(widths))]
    head_width = _head_width(model, [w for w, here in zip(widths, attends, strict=True) if here] + widths[-1:])
    classes = unet.class_embedding.num_embeddings if unet.class_embedding is not None else None
    residual = model.get("residual_resampling", False)
    plain, resampling = ("ResnetDownsampleBlock2D", "resnet") if residual else ("DownBlock2D", "conv")
    downs = ["AttnDownBlock2D" if here else plain for here in attends]
    return {
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


def _head_width(model: DictConfig, widths: list[int]) -> int | None:
    """diffusers' attention_head_dim: one width of heads for all levels; None for one head."""
    if model.get("head_width"):
        return int(model.head_width)
    if model.get("heads", 4) == 1:
        return None
    if len(set(widths)) > 1:
        raise ValueError(f"diffusers has heads of one width, here {model.heads} heads share {widths} channels")
    return widths[0] // int(model.heads)
