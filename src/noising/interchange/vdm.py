"""The layout of VDM: a tree of Flax's parameters, its names joined by ``/``, as arrays of an ``.npz`` file.

The noise schedule stands beside the network, as ``gamma``. Names: https://github.com/google-research/vdm.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noising.diffusion.levels import VariancePreserving
from noising.diffusion.schedules import LearnedLine, LearnedLogSNR
from noising.errors import require
from noising.interchange.layout import Described, HeldSchedule, Shapes
from noising.interchange.places import down, up
from noising.interchange.tensor_maps import SAME, Entry, HeightWidthInOut, Separate, Storage, Transposed
from noising.interchange.u_shape_layout import AttentionNames, BlockNames, UShapeLayout
from noising.models.blocks import Attention
from noising.models.vdm_unet import VDMUNet

IMAGE_SCALE = 255 / 256
"""Grey levels there lie in the middle of 256 bins of [−1, 1], and are this factor times those here."""
FREQUENCIES = [6, 7]
"""Exponents of the input's Fourier features, where there are some."""


class VDM(UShapeLayout):
    """``score_model`` with blocks ``down.block_0``, ``mid.block_1`` and ``up.block_0``, and ``gamma``."""

    network: VDMUNet
    families = (VDMUNet,)
    block = BlockNames("/GroupNorm_0", "/conv1", "/cond_proj", "/GroupNorm_1", "/conv2", "/nin_shortcut")
    attention = AttentionNames("/GroupNorm_0", ("/q", "/k", "/v"), "/proj_out")
    image_scale = IMAGE_SCALE
    file = "model.npz"
    schedule = "gamma/"

    @classmethod
    def recognizes(cls, shapes: Shapes) -> bool:
        return "score_model/conv_in/kernel" in shapes

    @classmethod
    def network_of(cls, shapes: Shapes, resolution: int, **facts: Any) -> Described:
        """facts: groups."""
        inputs, width = (shapes["score_model/conv_in/kernel"][axis] for axis in (2, 3))
        channels, blocks = shapes["score_model/conv_out/kernel"][-1], 0
        while f"score_model/down.block_{blocks}/conv1/kernel" in shapes:
            blocks += 1
        labels, features = shapes["score_model/dense0/kernel"][0] - width, inputs // channels - 1
        require(features in (0, 2 * len(FREQUENCIES)), f"Fourier features must be 4 a channel or none, got {features}")
        options = {
            "channels": channels,
            "out_channels": channels,
            "resolution": resolution,
            "augmentation_labels": labels if labels > 1 else 0,
            "width": width,
            "blocks": blocks,
            "attention": "score_model/down.attn_0/q/kernel" in shapes,
            "frequencies": FREQUENCIES if features else [],
            "groups": facts.get("groups", 32),
        }
        return Described(VDMUNet, options, cls)

    @classmethod
    def fitting(cls, network: nn.Module, options: Mapping[str, Any], resolution: int, **facts: Any) -> "VDM":
        cls.require_family(network)
        require(not getattr(network, "classes", 0), "the layout has no place for classes")
        frequencies = list(options.get("frequencies", FREQUENCIES))
        fits = frequencies in ([], FREQUENCIES)
        require(fits, f"the layout has no place for model.frequencies={frequencies}: {FREQUENCIES} or none")
        return cls(network)

    def entries(self) -> Iterator[Entry]:
        network, here = self.network, "score_model"
        yield from flax("layers.0", network.layers[0], f"{here}/dense0")
        yield from flax("layers.2", network.layers[2], f"{here}/dense1")
        yield from flax("first", network.first, f"{here}/conv_in")
        for path, module, _, block in down(network):
            yield from self.stage(path, module, f"{here}/down.block_{block}", f"{here}/down.attn_{block}")
        for number, module in enumerate(network.middle, 1):
            yield from self.stage(f"middle.{number - 1}", module, f"{here}/mid.block_{number}", f"{here}/mid.attn_1")
        for path, module, _, block in up(network):
            yield from self.stage(path, module, f"{here}/up.block_{block}", f"{here}/up.attn_{block}")
        yield from flax("last_norm", network.last_norm, f"{here}/GroupNorm_0")
        yield from flax("last", network.last, f"{here}/conv_out")

    def layer(self, ours: str, module: nn.Module, theirs: str) -> Iterator[Entry]:
        return flax(ours, module, theirs)

    def attends(self, ours: str, attention: Attention, theirs: str) -> Iterator[Entry]:
        names = self.attention
        yield from flax(f"{ours}.norm", attention.norm, theirs + names.norm)
        for part, there in (("weight", "kernel"), ("bias", "bias")):
            matrices = tuple(f"{theirs}{name}/{there}" for name in names.query_key_value)
            yield Entry(f"{ours}.query_key_value.{part}", matrices, Separate(transposed=True))
        yield from flax(f"{ours}.out", attention.out, theirs + names.out)

    @classmethod
    def schedule_of(cls, theirs: Mapping[str, Tensor]) -> HeldSchedule | None:
        """The schedule ``gamma`` = −λ of images scaled by `IMAGE_SCALE`: a line, or a line and a monotone network."""
        held = {name.removeprefix("gamma/"): tensor for name, tensor in theirs.items() if name.startswith("gamma/")}
        if not held:
            return None
        if held.keys() == {"b", "w"}:
            offset, slope = held["b"].float().reshape(()), held["w"].float().reshape(())
            ends = {"log_snr_max": -float(offset), "log_snr_min": -float(offset) - abs(float(slope))}
            weights = {"offset": offset, "slope": slope}
            return HeldSchedule(LearnedLine, {**ends, "image_scale": IMAGE_SCALE}, weights)
        expected = {"l1/kernel", "l1/bias", "l2/kernel", "l2/bias", "l3/kernel"}
        require(held.keys() == expected, f"gamma has {', '.join(sorted(held))}: expected b and w, or l1, l2 and l3")
        return _network(*(held[name].double().flatten() for name in sorted(expected)))

    @classmethod
    def with_schedule(cls, schedule: nn.Module) -> dict[str, Tensor]:
        if isinstance(schedule, LearnedLine):
            return {"gamma/b": schedule.offset.detach()[None], "gamma/w": schedule.slope.detach()[None]}
        return _as_network(schedule) if isinstance(schedule, LearnedLogSNR) else {}


def flax(ours: str, module: nn.Module, theirs: str) -> Iterator[Entry]:
    """The entries of a layer's own parameters: ``kernel``, or ``scale`` of a normalization, and ``bias``."""
    weight, kernel = "kernel", _kernel(module)
    if isinstance(module, nn.GroupNorm):
        weight, kernel = "scale", SAME
    for name, _ in module.named_parameters(recurse=False):
        there, storage = (weight, kernel) if name == "weight" else (name, SAME)
        yield Entry(f"{ours}.{name}", (f"{theirs}/{there}",), storage)


def _kernel(module: nn.Module) -> Storage:
    """The storage of a layer's kernel: a convolution by one pixel is a linear layer there."""
    return Transposed() if getattr(module, "kernel_size", (1, 1)) == (1, 1) else HeightWidthInOut()


def _network(bias: Tensor, kernel: Tensor, biases: Tensor, slopes: Tensor, heights: Tensor) -> HeldSchedule:
    """The schedule of −λ = bias + |kernel| t + mean of |heights| (2 sigmoid(|slopes| (2 t − 1) + biases) − 1).

    It is the one here, whose sigmoids are of 2 |slopes| t + (biases − |slopes|); its ends are those of this curve.
    """
    slopes, heights = slopes.abs(), heights.abs() / len(heights)

    def rise(t: float) -> float:
        curves = 2 * torch.sigmoid(slopes * (2 * t - 1) + biases) - 1
        return float(bias + kernel.abs() * t + (heights * curves).sum())

    shift = VariancePreserving(IMAGE_SCALE).shift
    geometry = {"_target_": "noising.diffusion.levels.VariancePreserving", "image_scale": IMAGE_SCALE}
    options = {"log_snr_max": shift - rise(0), "log_snr_min": shift - rise(1), "width": len(slopes)}
    weights = {
        "line": _softplus_inverse(kernel.abs())[0],
        "heights": _softplus_inverse(2 * heights),
        "slopes": _softplus_inverse(2 * slopes),
        "offsets": biases - slopes,
    }
    return HeldSchedule(LearnedLogSNR, options | {"geometry": geometry}, {n: w.float() for n, w in weights.items()})


def _as_network(schedule: LearnedLogSNR) -> dict[str, Tensor]:
    """The inverse of `_network`: layers there whose curve is that of the schedule, between its ends."""
    with torch.no_grad():
        line, heights, slopes = (F.softplus(w.double()) for w in (schedule.line, schedule.heights, schedule.slopes))
        offsets = schedule.offsets.double()
        before, after = (heights * torch.sigmoid(slopes * t + offsets) for t in (0, 1))
        scale = (schedule.log_snr_max - schedule.log_snr_min) / (line + (after - before).sum())
        heights, start = scale * heights / 2, VariancePreserving(IMAGE_SCALE).shift - schedule.log_snr_max
        layers = {
            "l1/bias": (start - 2 * (scale / 2 * before).sum() + heights.sum())[None],
            "l1/kernel": (scale * line)[None, None],
            "l2/bias": offsets + slopes / 2,
            "l2/kernel": slopes[None] / 2,
            "l3/kernel": (len(heights) * heights)[:, None],
        }
    return {f"gamma/{name}": tensor.float() for name, tensor in layers.items()}


def _softplus_inverse(values: Tensor) -> Tensor:
    """The numbers whose softplus is values, or the least that float32 tells from zero."""
    values = values.clamp(min=1e-30)
    return values + torch.log(-torch.expm1(-values))
