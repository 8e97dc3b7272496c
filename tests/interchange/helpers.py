"""Fixtures of published networks: random weights under their original names, inputs, and the outputs of that code.

Each was computed by the authors' own network code, which stands in its facts with its commit; the numbers say nothing
about quality. Weights are stored as float16 and were float16 numbers when the code ran.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from noising.interchange.diffusers_unet import DiffusersUNet
from noising.interchange.dit import PublishedDiT
from noising.interchange.edm import EDM
from noising.interchange.edm2 import EDM2
from noising.interchange.jit import JiTLayout
from noising.interchange.layout import Layout
from noising.interchange.layouts import LAYOUTS
from noising.interchange.openai import OpenAI
from noising.interchange.score_sde import ScoreSDE
from noising.interchange.uvit import UViTLayout
from noising.interchange.vdm import VDM

FOLDER = Path(__file__).parent / "fixtures"


class Fixture(NamedTuple):
    """A network of somebody's code at a small size: its facts, its weights, what it was given and what it gave."""

    facts: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def side(self) -> int:
        """Of the images."""
        return self.inputs["x" if "x" in self.inputs else "z"].shape[-2]


def fixture(name: str) -> Fixture:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        parts: list[dict[str, Tensor]] = []
        for prefix in ("state_dict/", "inputs/", "outputs/"):
            names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            parts.append({key.removeprefix(prefix): file.get_tensor(key) for key in names})
        weights = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in parts[0].items()}
        return Fixture(json.loads(file.metadata()["json"]), weights, parts[1], parts[2])


def published_layouts() -> dict[str, dict[str, Any]]:
    """Of published networks the name, the constructor of the authors' code, and each tensor's name and shape.

    Left out are those that no layout knows.
    """
    with gzip.open(FOLDER / "layouts_full_size.json.gz") as file:
        found = {facts["name"]: facts for facts in json.load(file)}
    known = LAYOUTS.values()
    return {name: facts for name, facts in found.items() if any(layout.recognizes(facts["keys"]) for layout in known)}


def layout_of(facts: dict[str, Any], shapes: dict[str, Any], resolution: int = 0) -> Layout:
    """The layout of a file, with what its facts say and its tensors do not."""
    said = facts["constructor"]
    if any(name.endswith("emb_fourier.freqs") for name in shapes):
        return EDM2.of(shapes, head_width=said.get("channels_per_head", 64), clip_features=said.get("clip_act", 256.0))
    if "score_model/conv_in/kernel" in shapes:
        return VDM.of(shapes, resolution)
    if "x_embedder.proj.weight" in shapes:
        return PublishedDiT.of(shapes, heads=said["num_heads"])
    if any("all_modules." in name for name in shapes):
        return ScoreSDE.of(shapes, said.get("data", {}).get("image_size", resolution), label_scale=4.0)
    if "decoder_pred.weight" in shapes:
        return UViTLayout.of(shapes, heads=said["num_heads"])
    if any(name.endswith("x_embedder.proj1.weight") for name in shapes):
        return JiTLayout.of(shapes, class_tokens_at=said["in_context_start"])
    if "time_embedding.linear_1.weight" in shapes:
        return DiffusersUNet.of(shapes, config=said)
    if "time_embed.0.weight" in shapes:
        width = said.get("num_head_channels")
        heads = {"head_width": width} if width not in (None, -1) else {"heads": said["num_heads"]}
        order = said.get("use_new_attention_order", False)
        groups = facts.get("groupnorm_groups", 32)
        return OpenAI.of(shapes, resolution, new_attention_order=order, groups=groups, **heads)
    return EDM.of(shapes, head_width=facts.get("channels_per_head", 64))


def read_shapes(given: Fixture, shapes: dict[str, tuple[int, ...]]) -> None:
    """Read a file of such tensors, without their numbers."""
    with torch.device("meta"):
        layout = layout_of(given.facts, shapes, given.side)
        layout.read({key: torch.empty(shape) for key, shape in shapes.items()})
