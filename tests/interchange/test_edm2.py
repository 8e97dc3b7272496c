"""EDM2's weights beyond what test_layouts.py holds of every layout: the uncertainty, the training's rule, options."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from noising.interchange.edm2 import EDM2
from noising.models import edm2
from noising.models.edm2 import EDM2UNet
from tests.interchange.helpers import Fixture, fixture, layout_of

NAMES = ["edm2_class", "edm2_uncond_clip"]


def opened(name: str) -> tuple[Fixture, EDM2, EDM2UNet]:
    given = fixture(name)
    layout = layout_of(given.facts, {key: tensor.shape for key, tensor in given.weights.items()})
    assert isinstance(layout, EDM2)
    layout.network.load_state_dict(layout.read(given.weights))
    return given, layout, layout.network.eval()


def classes(given: Fixture) -> Tensor | None:
    one_hot = given.inputs.get("class_labels")
    return None if one_hot is None else torch.where(one_hot.any(1), one_hot.argmax(1), one_hot.shape[1])


def difference(network: EDM2UNet, given: Fixture) -> float:
    with torch.no_grad():
        found = network(given.inputs["F_x"], given.inputs["F_c_noise"], classes(given))
    return float((found - given.outputs["F"]).abs().max() / given.outputs["F"].abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_the_uncertainty_is_that_of_the_authors_code(name: str) -> None:
    given, _, network = opened(name)
    assert network.log_variance is not None
    expected = given.outputs["logvar"].flatten()
    with torch.no_grad():
        found = network.log_variance(given.inputs["F_c_noise"])
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


def test_no_class_is_the_authors_row_of_zeros() -> None:
    """The denoiser without a class, from the network by EDM's preconditioning."""
    given, _, network = opened("edm2_class")
    sigma, x = given.inputs["sigma"].reshape(-1, 1, 1, 1), given.inputs["x"]
    total = sigma**2 + 0.25
    with torch.no_grad():
        output = network(given.inputs["F_x"], given.inputs["F_c_noise"])
    found = 0.25 / total * x + sigma * 0.5 / total.sqrt() * output
    assert (found - given.outputs["D_no_class"]).abs().max() < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_call_in_training_writes_the_weights_that_the_authors_code_writes(name: str) -> None:
    given, layout, network = opened(name)
    network.train()(given.inputs["F_x"], given.inputs["F_c_noise"], classes(given))
    written = layout.write(network.state_dict())
    held = {key.split("/")[1]: value for key, value in given.outputs.items() if "after_training" in key}
    assert len(held) == 3
    for key, expected in held.items():
        torch.testing.assert_close(written[key], expected, rtol=1e-6, atol=1e-6)
        assert (written[key] - given.weights[key]).abs().max() > 0.01


def other_rows(given: Fixture) -> EDM2UNet:
    """The file's rows taken as [head][q/k/v][channel]."""
    _, _, network = opened("edm2_class")
    for layer in network.modules():
        if isinstance(layer, edm2.CosineAttention):
            rows, heads = layer.query_key_value.weight.data, layer.heads
            theirs = rows.reshape(3, heads, -1, rows.shape[1]).permute(1, 2, 0, 3)  # [head][channel][q/k/v]
            wrong = theirs.reshape(heads, 3, -1, rows.shape[1]).transpose(0, 1)
            layer.query_key_value.weight.data = wrong.reshape(rows.shape)
    return network


def of_other_option(**options: float) -> Callable[[Fixture], EDM2UNet]:
    def read(given: Fixture) -> EDM2UNet:
        facts = {"head_width": 8, "clip_features": given.facts["constructor"].get("clip_act", 256.0)} | options
        layout = EDM2.of({key: tensor.shape for key, tensor in given.weights.items()}, **facts)
        layout.network.load_state_dict(layout.read(given.weights))
        return layout.network.eval()

    return read


@pytest.mark.parametrize(
    ("name", "misread", "far"),
    [
        ("edm2_class", other_rows, 0.02),
        ("edm2_class", of_other_option(head_width=16), 0.02),
        ("edm2_uncond_clip", of_other_option(clip_features=256.0), 0.02),
    ],
)
def test_another_reading_of_the_same_names_is_far_off(
    name: str, misread: Callable[[Fixture], EDM2UNet], far: float
) -> None:
    given, _, right = opened(name)
    assert difference(right, given) < 2e-6
    assert difference(misread(given), given) > far


@pytest.mark.parametrize(("fault", "value"), [("EPS", 1e-5), ("SILU_GAIN", 1 / 0.6), ("BRANCH", 0.31), ("EQUAL", 0.51)])
def test_the_constants_are_those_of_the_authors_code(fault: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _, network = opened("edm2_class")
    monkeypatch.setattr(edm2, fault, value)
    assert difference(network, given) > 4e-5


def test_a_file_without_the_uncertainty_and_without_a_prefix_is_read_too() -> None:
    given, _, whole = opened("edm2_class")
    bare = {key.removeprefix("unet."): tensor for key, tensor in given.weights.items() if key.startswith("unet.")}
    layout = EDM2.of({key: tensor.shape for key, tensor in bare.items()}, head_width=8)
    layout.network.load_state_dict(layout.read(bare))
    assert layout.network.log_variance is None
    assert difference(layout.network.eval(), given) == difference(whole, given)
    back = layout.write(layout.network.state_dict())
    assert back.keys() == bare.keys()


def test_widths_that_the_names_alone_tell_are_read() -> None:
    """Of a network whose first multiplier is not 1, and whose embedding has a width of its own."""
    options = {"channels": 1, "out_channels": 1, "resolution": 8, "width": 8, "multipliers": [2, 3], "blocks": 2}
    options |= {"attention": [8], "head_width": 8, "noise_waves": 6, "embedding": 10, "log_variance_waves": 5}
    network = EDM2UNet(**options)  # type: ignore[arg-type]
    weights = EDM2(network, 8).write(network.state_dict())
    described = EDM2.describe({key: tuple(tensor.shape) for key, tensor in weights.items()}, 8, head_width=8)
    assert {name: described.options[name] for name in options} == options


def test_a_network_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="this layout is of EDM2UNet, the run's network is a Linear"):
        EDM2.fitting(torch.nn.Linear(1, 1), {}, 8)
