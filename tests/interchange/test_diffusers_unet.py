"""Every kind of diffusers' UNet2DModel that a network here can be gives the same output; the others are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from noising.interchange.diffusers_unet import DiffusersUNet

PLAIN: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
RESNET: dict[str, Any] = {"downsample_type": "resnet", "upsample_type": "resnet"}
KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "residual resampling": RESNET
    | {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")}
    | {"up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")},
    "residual resampling everywhere with attention": RESNET
    | {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "classes": {"num_class_embeds": 7},
    "DDPM's": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "one head": {"attention_head_dim": None},
    "three levels": {
        "block_out_channels": (16, 16, 32),
        "layers_per_block": 2,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "a learned variance": {"out_channels": 6},
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_diffusers(kind: str) -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    theirs: Any = UNet2DModel(**PLAIN | KINDS[kind]).eval()  # type: ignore[no-untyped-call,attr-defined]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.1 + 0.1 * torch.randn_like(parameter))
    weights = theirs.state_dict()
    layout = DiffusersUNet.of({name: tuple(w.shape) for name, w in weights.items()}, config=dict(theirs.config))
    layout.network.load_state_dict(layout.read(weights))
    x, steps = torch.randn(2, 3, 16, 16), torch.tensor([3, 777])
    class_label = torch.tensor([1, 6]) if "num_class_embeds" in KINDS[kind] else None
    with torch.no_grad():
        expected = theirs(x, steps, class_labels=class_label).sample
        output = layout.network.eval()(x, steps, class_label)
    assert (output - expected).abs().max() / expected.abs().max() < 2e-5
    back = layout.write(layout.network.state_dict())
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types=.*SkipDownBlock2D.* is of no"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types=.* is of no network here"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None in config.json is of no network here"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type=fourier in config.json is of no network here"),
        ({"freq_shift": 0.5}, "freq_shift=0.5 in config.json"),
        ({"upsample_type": "resnet"}, "upsample_type=resnet in config.json"),
    ],
)
def test_other_kinds_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersUNet.of({}, config=PLAIN | options)
