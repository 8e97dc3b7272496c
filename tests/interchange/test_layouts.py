"""Weights of the authors' own code, in their layout: the same output here, and the same file back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noising.interchange.diffusers_unet import DiffusersUNet
from noising.interchange.dit import PublishedDiT
from noising.interchange.edm import EDM
from noising.interchange.edm2 import EDM2
from noising.interchange.jit import JiTLayout
from noising.interchange.layouts import LAYOUTS
from noising.interchange.openai import OpenAI
from noising.interchange.score_sde import ScoreSDE
from noising.interchange.uvit import UViTLayout
from tests.interchange.helpers import FOLDER, Fixture, fixture, layout_of, published_layouts, read_shapes

NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
LIMIT = 2e-5  # of the largest output: the same code with another convolution library differs by up to 3e-6


def own(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the network has: score SDE stores noise levels beside them, and VDM its schedule."""
    return {name: tensor for name, tensor in weights.items() if not name.endswith("sigmas") and "gamma/" not in name}


def outputs(network: torch.nn.Module, given: Fixture) -> dict[str, Tensor]:
    """What the network here gives for the fixture's inputs, under the names of the fixture's outputs."""
    inputs, facts, said = given.inputs, given.facts, given.facts["constructor"]
    if "F_x" in inputs:  # EDM's network within its preconditioning
        x, label, classes = inputs["F_x"], inputs["F_c_noise"], inputs.get("class_labels")
        number = None if classes is None else torch.where(classes.any(1), classes.argmax(1), classes.shape[1])
        found = {"F": network(x, label, number, inputs.get("augment_labels"))}
        return found | ({"F_no_augment": network(x, label, number)} if "augment_labels" in inputs else {})
    if facts["network"].endswith("NCSNpp") and facts["constructor"]["model"]["scale_by_sigma"]:
        sigma = inputs["labels"]
        return {"out": network(inputs["x"], sigma.log() / 4) / sigma[:, None, None, None]}
    if "eps_hat" in given.outputs:  # VDM's, with channels last
        label = 1000 * (inputs["gamma"] - said["gamma_min"]) / (said["gamma_max"] - said["gamma_min"])
        output = network(inputs["z"].permute(0, 3, 1, 2), label, None, inputs["conditioning"][:, None])
        return {"eps_hat": output.permute(0, 2, 3, 1)}
    label = next(inputs[name] for name in ("timesteps", "labels", "t") if name in inputs)
    return {"out": network(inputs["x"], label, inputs.get("y"))}


@pytest.mark.parametrize("name", NAMES)
def test_the_network_gives_what_the_authors_code_gave(name: str) -> None:
    given = fixture(name)
    weights = own(given.weights)
    layout = layout_of(given.facts, {key: tensor.shape for key, tensor in weights.items()}, given.side)
    layout.network.load_state_dict(layout.read(weights))
    with torch.no_grad():
        found = outputs(layout.network.eval(), given)
    for key, output in found.items():
        difference = (output - given.outputs[key]).abs().max() / given.outputs[key].abs().max()
        assert difference < LIMIT, (key, difference)
    back = layout.write(layout.network.state_dict())
    assert back.keys() == weights.keys()
    assert [key for key, tensor in weights.items() if not torch.equal(back[key], tensor)] == []


@pytest.mark.parametrize("name", published_layouts())
def test_every_tensor_of_a_published_network_has_its_name_and_shape(name: str) -> None:
    facts = published_layouts()[name]
    shapes = {key: tuple(shape) for key, shape in facts["keys"].items() if not key.endswith("sigmas")}
    resolution = 64 if "64" in name else 32
    with torch.device("meta"):
        layout = layout_of(facts, shapes, resolution)
        here = layout.network.state_dict()
        assert {key: tuple(tensor.shape) for key, tensor in layout.write(here).items()} == shapes
        read = layout.read({key: torch.empty(shape) for key, shape in shapes.items()})
    assert {key: tensor.shape for key, tensor in read.items()} == {key: tensor.shape for key, tensor in here.items()}
    assert (
        sum(parameter.numel() for parameter in layout.network.parameters()) + fixed(name, layout.network)
        == facts["parameters"]
    )


def fixed(name: str, network: torch.nn.Module) -> int:
    """Numbers that the authors count and that are never trained: NCSN++'s Fourier frequencies, tables of positions."""
    return (
        128 if name.startswith("score SDE") else sum(b.numel() for n, b in network.named_buffers() if n == "positions")
    )


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("adm_legacyorder", "another order of query, key and value"),
        ("adm_neworder_class_sigma", "another order of query, key and value"),
        ("iddpm_shiftonly", "sines and cosines changed"),
        ("edm_ncsnpp", "a flat filter"),
        ("edm_adm_class", "half the groups"),
        ("sde_ddpmpp_rectifiedflow", "skip connections not scaled"),
        ("dit_sit_class_sigma", "sines and cosines changed"),
    ],
)
def test_another_reading_of_the_same_names_is_far_off(name: str, fault: str) -> None:
    """What names and shapes cannot tell: the outputs differ by far more than the limit above."""
    given = fixture(name)
    weights = own(given.weights)
    layout = layout_of(given.facts, {key: tensor.shape for key, tensor in weights.items()}, given.side)
    network = layout.network.eval()
    network.load_state_dict(layout.read(weights))
    if fault.startswith("another order"):
        assert isinstance(layout, OpenAI)
        layout.new_attention_order ^= True
        network.load_state_dict(layout.read(weights))
    elif fault.startswith("sines"):
        first = network.noise_embedding.layers[0].weight
        first.data = first.data.roll(first.shape[1] // 2, 1)
    elif fault == "a flat filter":
        for module in network.modules():
            if hasattr(module, "kernel"):
                module.kernel = torch.zeros_like(module.kernel)
                module.kernel[1:3, 1:3] = 0.25
    elif fault == "half the groups":
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.num_groups //= 2
    else:
        for module in network.modules():
            if hasattr(module, "skip_scale"):
                module.skip_scale = 1.0
    with torch.no_grad():
        key, found = next(iter(outputs(network, given).items()))
    assert (found - given.outputs[key]).abs().max() / given.outputs[key].abs().max() > 0.02


def test_a_file_of_another_network_is_refused_by_name() -> None:
    given = fixture("torchcfm")
    layout = layout_of(given.facts, {key: tensor.shape for key, tensor in given.weights.items()}, 16)
    for change, message in (
        ({"out.2.bias": None}, "the file lacks out.2.bias"),
        ({"head.weight": torch.zeros(2)}, "the network has no place for head.weight of the file"),
        ({"out.2.bias": torch.zeros(4)}, r"out.2.bias is \(4,\) in the file, \(3,\) in the network"),
    ):
        weights = {key: tensor for key, tensor in {**given.weights, **change}.items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            layout.read(weights)


@pytest.mark.parametrize(
    "name", ["torchcfm", "edm_adm_class", "edm_ncsnpp", "sde_ncsnpp_ve", "ddpm_diffusers", "dit_sit_class_sigma", "vdm"]
)
def test_incomplete_files_are_refused_in_words(name: str) -> None:
    """A tensor that is missing, or of another form, wherever the network is read from it."""
    given = fixture(name)
    whole = {key: tuple(tensor.shape) for key, tensor in own(given.weights).items()}
    faulty = [{key: shape for key, shape in whole.items() if key != lost} for lost in [*whole][::11]]
    first = next(key for key, shape in whole.items() if len(shape) == 4)  # of the image's channels
    faulty += [{key: shape for key, shape in whole.items() if key != first}]
    faulty += [{**whole, first: (0, *whole[first][1:])}, {**whole, first: whole[first][:1]}]
    faulty += [{key.replace("0", "x"): shape for key, shape in whole.items()}]
    for shapes in faulty:
        with pytest.raises(ValueError, match=r"lacks|has no place for|in the network|no complete network|must be"):
            read_shapes(given, shapes)


@pytest.mark.parametrize("name", published_layouts())
def test_one_layout_knows_a_file(name: str) -> None:
    facts = published_layouts()[name]
    known = [layout for layout in LAYOUTS.values() if layout.recognizes(facts["keys"])]
    expected = {
        "diffusers": DiffusersUNet,
        "DiT": PublishedDiT,
        "U-ViT": UViTLayout,
        "DiffusionFusion": JiTLayout,
        "edm": EDM,
        "edm2": EDM2,
        "improved-diffusion": OpenAI,
        "guided-diffusion": OpenAI,
    }
    assert known == [expected.get(facts["repo"].split("/")[-1], ScoreSDE)]
