"""DiT, SiT and diffusers' DiTTransformer2DModel: the same output here, the same file back, and what must not pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.interchange.diffusers_dit import DiffusersDiT
from noising.interchange.dit import PublishedDiT
from noising.models.dit import DiT
from noising.models.tokens import FeedForward
from tests.interchange.helpers import fixture
from tests.models.helpers import awake

LIMIT = 2e-5  # of the largest output


def shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def loaded(**facts: Any) -> PublishedDiT:
    """The network of the fixture, with its weights."""
    weights = fixture("dit_sit_class_sigma").weights
    layout = PublishedDiT.of(shapes_of(weights), **{"heads": 3} | facts)
    assert isinstance(layout, PublishedDiT)
    layout.network.load_state_dict(layout.read(weights))
    layout.network.eval()
    return layout


@torch.no_grad()
def difference(network: DiT, output: str = "out", sign: float = 1.0) -> float:
    """The largest difference from the stored output, as a part of the largest output."""
    given = fixture("dit_sit_class_sigma")
    found = network(given.inputs["x"], given.inputs["t_sit" if output == "sit_out" else "t"], given.inputs["y"])
    return float((sign * found - given.outputs[output]).abs().max() / given.outputs[output].abs().max())


def test_sit_is_dit_without_half_of_its_outputs() -> None:
    weights = fixture("dit_sit_class_sigma").weights
    for facts, sign in (({}, 1.0), ({"negated": True}, -1.0)):
        layout = loaded(drops_variance=True, **facts)
        assert layout.network.out_channels == 4
        assert difference(layout.network, "sit_out", sign) < LIMIT
        back = layout.write(layout.network.state_dict())
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def test_the_table_of_positions_is_the_stored_one() -> None:
    stored = fixture("dit_sit_class_sigma").weights["pos_embed"]
    fresh = PublishedDiT.of(shapes_of(fixture("dit_sit_class_sigma").weights), heads=3).network
    assert torch.equal(fresh.positions[None], stored)
    assert difference(loaded().network) < LIMIT


def _swap_positions(network: DiT) -> None:
    network.positions.copy_(network.positions.roll(network.positions.shape[1] // 2, 1))


def _swap_sinusoids(network: DiT) -> None:
    weight = network.noise_embedding.layers[0].weight
    weight.data = weight.data.roll(weight.shape[1] // 2, 1)  # type: ignore[operator,union-attr]


def _exact_gelu(network: DiT) -> None:
    for module in network.modules():
        if isinstance(module, FeedForward):
            module.approximate = "none"


def _heads_first(network: DiT) -> None:
    for block in network.blocks:
        weight = block.attention.query_key_value.weight  # type: ignore[union-attr]
        weight.data = weight.data.view(3, 3, 16, -1).transpose(0, 1).reshape(weight.shape)  # type: ignore[union-attr,operator]


def _endpoint(network: DiT) -> None:
    other = DiT(channels=1, out_channels=1, resolution=2, width=4, depth=1, heads=1, endpoint=True)
    network.noise_embedding.sinusoids.frequencies = other.noise_embedding.sinusoids.frequencies


def _swap_gates(network: DiT) -> None:
    for block in network.blocks:
        layer = block.modulation
        layer.weight.data = layer.weight.data.roll(48 * 3, 0)  # type: ignore[union-attr,operator]


FAULTS = {  # what names and shapes cannot tell, and how far it is off at least
    "rows and columns of the positions": (_swap_positions, 0.1),
    "sines and cosines": (_swap_sinusoids, 0.1),
    "rows of query, key and value": (_heads_first, 0.1),
    "the last frequency": (_endpoint, 0.1),
    "attention's and the feed-forward layer's modulations": (_swap_gates, 0.1),
    "an exact GELU": (_exact_gelu, 2 * LIMIT),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_reading_of_the_same_names_is_seen(fault: str) -> None:
    change, least = FAULTS[fault]
    network = loaded().network
    change(network)
    assert difference(network) > least


def test_another_number_of_heads_is_seen() -> None:
    assert difference(loaded(heads=6).network) > 0.02
    assert difference(loaded(head_width=16).network) < LIMIT


def test_rows_of_classes_are_read_with_and_without_one_for_none() -> None:
    weights = fixture("dit_sit_class_sigma").weights
    assert loaded().network.classes == 10
    whole = loaded(null_class=False)
    assert whole.network.classes == 11
    assert difference(whole.network) < LIMIT
    unconditional = {name: weight for name, weight in weights.items() if "y_embedder" not in name}
    layout = PublishedDiT.of(shapes_of(unconditional), heads=3)
    layout.network.load_state_dict(layout.read(unconditional))
    assert layout.network.classes == 0
    assert layout.write(layout.network.state_dict()).keys() == unconditional.keys()


PLAIN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 3,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
}
KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "a learned variance": {"out_channels": 6, "norm_eps": 1e-6},
    "patches of 4": {"patch_size": 4, "num_attention_heads": 1, "attention_head_dim": 12},
}


def their_network(**options: Any) -> Any:
    """A network of diffusers with random weights, the same embedders in each of its blocks."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    theirs: Any = DiTTransformer2DModel(**PLAIN | options).eval()  # type: ignore[no-untyped-call,attr-defined]
    awake(theirs)
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_diffusers(kind: str) -> None:
    theirs = their_network(**KINDS[kind])
    weights = theirs.state_dict()
    layout = DiffusersDiT.of(shapes_of(weights), config=dict(theirs.config))
    assert isinstance(layout, DiffusersDiT)
    layout.network.load_state_dict(layout.read(weights))
    x, steps, classes = torch.randn(2, 3, 8, 8), torch.tensor([3, 777]), torch.tensor([1, 5])
    with torch.no_grad():
        expected = theirs(x, steps, class_labels=classes).sample
        output = layout.network.eval()(x, steps, classes)
    assert (output - expected).abs().max() / expected.abs().max() < LIMIT
    back = layout.write(layout.network.state_dict())
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    said = {name: value for name, value in layout.config().items() if name not in ("_class_name", "norm_eps")}
    assert said == {name: theirs.config[name] for name in said} | {"out_channels": theirs.out_channels}


def test_diffusers_xl_has_a_copy_of_the_embeddings_in_each_block() -> None:
    """28 copies, in 749,826,464 numbers; DiT's own file has 675,129,632."""
    with torch.device("meta"):
        network = DiT(channels=4, out_channels=8, resolution=32, classes=1000, width=1152, depth=28, heads=16)
        found = DiffusersDiT(network).write(network.state_dict())
    assert sum(tensor.numel() for tensor in found.values()) == 749_826_464


@pytest.mark.parametrize("classes", [0, 4])
def test_diffusers_opens_a_network_of_here(classes: int) -> None:
    """Without classes it has one there, of a row of zeros, and comes back as one without."""
    from diffusers import DiTTransformer2DModel

    sizes = {"channels": 1, "out_channels": 2, "resolution": 8, "width": 16, "depth": 2, "heads": 2, "endpoint": True}
    network = awake(DiT(**sizes, classes=classes)).eval()  # type: ignore[arg-type]
    layout = DiffusersDiT.fitting(network, {}, 8)
    config = {name: value for name, value in layout.config().items() if name != "_class_name"}
    theirs: Any = DiTTransformer2DModel(**config).eval()  # type: ignore[no-untyped-call,attr-defined]
    weights = layout.write(network.state_dict())
    theirs.load_state_dict(weights)
    x, steps, labels = torch.randn(3, 1, 8, 8), torch.tensor([3, 777, 999]), torch.tensor([0, 1, classes or 1])
    with torch.no_grad():
        expected = theirs(x, steps, class_labels=labels).sample
        output = network(x, steps, labels if classes else None)
    assert (output - expected).abs().max() / expected.abs().max() < LIMIT
    back = DiffusersDiT.of(shapes_of(weights), config=config)
    state = back.read(weights)
    assert back.network.classes == classes
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in network.state_dict().items())


def test_dits_own_weights_differ_by_half_in_diffusers_but_for_its_frequencies() -> None:
    """Its sinusoids reach the longest wavelength, those of DiT's code do not."""
    from diffusers import DiTTransformer2DModel

    given, network = fixture("dit_sit_class_sigma"), loaded().network
    layout = DiffusersDiT(network)
    config = {name: value for name, value in layout.config().items() if name != "_class_name"}
    theirs: Any = DiTTransformer2DModel(**config).eval()  # type: ignore[no-untyped-call,attr-defined]
    theirs.load_state_dict(layout.write(network.state_dict()))
    for shift, (least, most) in ((1, (0.2, 1.0)), (0, (0.0, LIMIT))):
        for block in theirs.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = shift
        with torch.no_grad():
            found = theirs(given.inputs["x"], given.inputs["t"], class_labels=given.inputs["y"]).sample
        assert least < (found - given.outputs["out"]).abs().max() / given.outputs["out"].abs().max() < most


def test_what_diffusers_has_otherwise_is_named() -> None:
    theirs = their_network()
    weights, config = theirs.state_dict(), dict(theirs.config)
    shapes = shapes_of(weights)
    for options, message in (
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True in config.json is of no network here"),
        ({"activation_fn": "geglu"}, "activation_fn=geglu in config.json"),
        ({"attention_bias": False}, "attention_bias=False in config.json"),
        ({"norm_eps": 1e-3}, "norm_eps=0.001 in config.json"),
        ({"attention_head_dim": 72}, "config.json is not of this file, whose tokens have 16 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffusersDiT.of(shapes, config=config | options)
    layout = DiffusersDiT.of(shapes, config=config)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    with pytest.raises(ValueError, match=r"its 2 copies of a tensor of shape \(16,\) differ"):
        layout.read({**weights, name: weights[name] + 1})
    one = their_network(num_embeds_ada_norm=1)
    layout = DiffusersDiT.of(shapes_of(one.state_dict()), config=dict(one.config))
    with pytest.raises(ValueError, match="it has one class, whose row is not zero"):
        layout.read(one.state_dict())


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (PublishedDiT, {"endpoint": True}, "model.endpoint=true is diffusers' network: write it with to=diffusers"),
        (DiffusersDiT, {"mlp_ratio": 2.0}, "no place for model.mlp_ratio=2, only for 4"),
        (DiffusersDiT, {"classes": 3, "null_class": False}, "no place for model.null_class=false"),
    ],
)
def test_networks_that_a_layout_cannot_hold_are_named(layout: Any, options: dict[str, Any], message: str) -> None:
    sizes = {"channels": 1, "out_channels": 1, "resolution": 4, "width": 8, "depth": 1, "heads": 1}
    with pytest.raises(ValueError, match=message):
        layout.fitting(DiT(**sizes | options), options, 4)
    with pytest.raises(ValueError, match="this layout is of DiT, the run's network is a Linear"):
        layout.fitting(nn.Linear(1, 1), {}, 4)
