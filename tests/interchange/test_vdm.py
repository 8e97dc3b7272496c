"""VDM's files: the schedule beside the network, in and out, what misreadings would give, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noising.diffusion.denoiser import Denoiser
from noising.diffusion.gaussian import Gaussian
from noising.diffusion.likelihood.decoders import SoftmaxGaussian
from noising.diffusion.likelihood.terms import prior_at
from noising.diffusion.noise_labels import ScaledLogSNR
from noising.diffusion.objectives import ContinuousBound
from noising.diffusion.parameterizations import Epsilon
from noising.diffusion.schedules import LearnedLine, LearnedLogSNR
from noising.diffusion.transitions import Chain
from noising.diffusion.variances import FixedSmall
from noising.interchange.vdm import VDM
from noising.models.blocks import Attention
from noising.models.vdm_unet import VDMUNet
from tests.interchange.helpers import fixture

SHIFT = 2 * math.log(255 / 256)
"""λ of images less λ of images times 255/256, which VDM noises."""


def loaded(theirs: dict[str, Tensor]) -> LearnedLine | LearnedLogSNR:
    held = VDM.schedule_of(theirs)
    assert held is not None
    options = {name: value for name, value in held.options.items() if name != "geometry"}
    schedule = held.family(**options)
    schedule.load_state_dict(held.weights)
    assert isinstance(schedule, LearnedLine | LearnedLogSNR)
    return schedule


def test_the_line_is_gamma_of_scaled_images_and_comes_back_to_the_bit() -> None:
    given = fixture("vdm")
    schedule = loaded(given.weights)
    t = given.inputs["t"].double()
    with torch.no_grad():
        torch.testing.assert_close(SHIFT - schedule.log_snr(t), given.outputs["gamma_of_t"].double(), rtol=0, atol=1e-6)
    slope = schedule.log_snr_rate(t).detach()
    torch.testing.assert_close(-slope, given.outputs["gamma_slope_of_t"].double(), rtol=1e-6, atol=0)
    for sign in (1, -1):  # the slope there is |w|
        theirs = {"gamma/b": given.weights["gamma/b"], "gamma/w": sign * given.weights["gamma/w"]}
        with torch.no_grad():
            assert torch.equal(loaded(theirs).log_snr(t), schedule.log_snr(t))
        back = VDM.with_schedule(loaded(theirs))
        assert back.keys() == theirs.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())


def test_a_noised_image_is_vdms() -> None:
    """√(1 − v) f + √v ε with v = sigmoid(γ), for f = 2 (x + ½)/256 − 1 of grey levels x."""
    given = fixture("vdm")
    schedule, images = loaded(given.weights), given.inputs["images"].permute(0, 3, 1, 2)
    encoded = given.outputs["encoded"].permute(0, 3, 1, 2)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    variance = torch.sigmoid(given.outputs["gamma_of_t"][[1, 3]]).reshape(-1, 1, 1, 1)
    expected = (1 - variance).sqrt() * encoded + variance.sqrt() * noise
    found = schedule(t).perturb(images / 127.5 - 1, noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def last(images: Tensor) -> Tensor:
    """Images with channels last, as Flax has them, with channels first."""
    return images.permute(0, 3, 1, 2)


def test_every_term_of_the_loss_is_vdms() -> None:
    """Reconstruction, prior and diffusion term of two images, with the noise that the authors' code drew."""
    given = fixture("vdm")
    layout = VDM.of({name: tuple(x.shape) for name, x in given.weights.items()}, 8)
    layout.network.load_state_dict(layout.read(given.weights))
    schedule, network = loaded(given.weights), layout.network.eval()
    x, of = last(given.inputs["images"]) / 127.5 - 1, given.outputs
    conditioning = given.inputs["conditioning"][:, None]
    label = ScaledLogSNR(13.3 + SHIFT, -5 + SHIFT, clamped=False)
    denoiser = Denoiser(network, schedule, Epsilon(), FixedSmall(), label)
    t = (of["loss_t0"].double() + torch.arange(2) / 2) % 1
    dims = x[0].numel() * math.log(2)
    with torch.no_grad():
        found = ContinuousBound(SoftmaxGaussian())(denoiser, x, t, last(of["loss_eps"]), augmentation=conditioning)
        start, end = (schedule(torch.tensor(time, dtype=torch.float64)) for time in (0.0, 1.0))
        z_0 = start.perturb(x, last(of["loss_eps_0"]))
        reconstruction = -SoftmaxGaussian().log_prob(x, Gaussian(x, start.log_snr), z_0, start)
        prior = prior_at(end, 1.0, x)
        with_its_own_noise = -SoftmaxGaussian().log_prob(
            x, Gaussian(x, start.log_snr), start.perturb(x, last(of["loss_eps"])), start
        )
    torch.testing.assert_close(prior.float(), of["loss_klz"], rtol=1e-5, atol=0)
    torch.testing.assert_close(reconstruction, of["loss_recon"], rtol=1e-4, atol=0)
    diffusion = dims * found["loss"] - prior - with_its_own_noise  # the objective has one noise for both
    torch.testing.assert_close(diffusion.float(), of["loss_diff"], rtol=1e-4, atol=0)


def test_a_step_of_the_chain_is_vdms() -> None:
    given = fixture("vdm")
    layout = VDM.of({name: tuple(x.shape) for name, x in given.weights.items()}, 8)
    layout.network.load_state_dict(layout.read(given.weights))
    label = ScaledLogSNR(13.3 + SHIFT, -5 + SHIFT, clamped=False)
    denoiser = Denoiser(layout.network.eval(), loaded(given.weights), Epsilon(), FixedSmall(), label)
    steps = int(given.inputs["step_T"])
    transition = Chain.uniform(denoiser.schedule, steps)[steps - int(given.inputs["step_i"])]
    z = last(given.inputs["z"])
    with torch.no_grad():
        prediction = denoiser.at(z, transition.later, augmentation=given.inputs["conditioning"][:, None])
        reverse = denoiser.reverse(transition, z, prediction)
    found = reverse.mean + (reverse.log_variance / 2).exp() * last(given.outputs["step_eps"])
    torch.testing.assert_close(found.float(), last(given.outputs["step_z_s"]), rtol=0, atol=1e-5)


def network_of_gamma(seed: int = 0) -> dict[str, Tensor]:
    """The layers of a monotone network near the ends at which VDM's training begins."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "gamma/l1/kernel": torch.tensor([[-18.3]]),  # its absolute value is meant
        "gamma/l1/bias": torch.tensor([-13.3]),
        "gamma/l2/kernel": 3 * normal(1, 16),
        "gamma/l2/bias": normal(16),
        "gamma/l3/kernel": 8 * normal(16, 1),
    }


def gamma(layers: dict[str, Tensor], t: Tensor) -> Tensor:
    """Kingma et al. (2021), appendix H, as their code has it."""
    of = {name.removeprefix("gamma/"): tensor.double() for name, tensor in layers.items()}
    column = t[:, None]
    hidden = (2 * (column - 0.5)) @ of["l2/kernel"].abs() + of["l2/bias"]
    curve = (2 * (torch.sigmoid(hidden) - 0.5)) @ of["l3/kernel"].abs() / len(of["l3/kernel"])
    return (column @ of["l1/kernel"].abs() + of["l1/bias"] + curve)[:, 0]


def test_the_monotone_network_is_the_same_curve_in_and_out() -> None:
    layers, t = network_of_gamma(), torch.linspace(0, 1, 21, dtype=torch.float64)
    schedule = loaded(layers)
    with torch.no_grad():
        torch.testing.assert_close(SHIFT - schedule.log_snr(t), gamma(layers, t), rtol=0, atol=2e-5)
        torch.testing.assert_close(gamma(VDM.with_schedule(schedule), t), gamma(layers, t), rtol=0, atol=2e-5)
    assert VDM.with_schedule(schedule).keys() == layers.keys()
    assert {name: x.shape for name, x in VDM.with_schedule(schedule).items()} == {n: x.shape for n, x in layers.items()}


def test_a_file_without_a_schedule_has_none_and_another_is_refused() -> None:
    weights = {name: tensor for name, tensor in fixture("vdm").weights.items() if "gamma" not in name}
    assert VDM.schedule_of(weights) is None
    with pytest.raises(ValueError, match="gamma has b: expected b and w, or l1, l2 and l3"):
        VDM.schedule_of({"gamma/b": torch.zeros(1)})


@pytest.mark.parametrize(
    "fault", ["cosines first", "in and out changed", "epsilon", "no base", "half the frequencies", "one attention more"]
)
def test_another_reading_of_the_same_names_is_far_off(fault: str) -> None:
    given = fixture("vdm")
    layout = VDM.of({name: tuple(x.shape) for name, x in given.weights.items()}, 8)
    network = layout.network.eval()
    network.load_state_dict(layout.read(given.weights))
    x, said = given.inputs["z"].permute(0, 3, 1, 2), given.facts["constructor"]
    label = 1000 * (given.inputs["gamma"] - said["gamma_min"]) / (said["gamma_max"] - said["gamma_min"])

    def difference() -> float:
        with torch.no_grad():
            output = network(x, label, None, given.inputs["conditioning"][:, None]).permute(0, 2, 3, 1)
        if fault == "no base" and changed:
            output = output - given.inputs["z"]
        return float((output - given.outputs["eps_hat"]).abs().max() / given.outputs["eps_hat"].abs().max())

    changed = False
    assert difference() < 1e-5
    changed = True
    with torch.no_grad():
        if fault == "cosines first":
            network.layers[0].weight[:, :64] = network.layers[0].weight[:, :64].roll(32, 1)
        elif fault == "in and out changed":
            weight = network.down[0].residual.conv_in.weight
            weight.copy_(weight.transpose(0, 1).clone())
        elif fault == "epsilon":
            for module in network.modules():
                module.eps = 1e-5
        elif fault == "half the frequencies":
            network.fourier_features.frequencies.mul_(0.5)
        elif fault == "one attention more":
            network.middle[1].attention = Attention(64, lambda channels: torch.nn.GroupNorm(32, channels), 1)
            network.middle[1].attention.load_state_dict(network.middle[0].attention.state_dict())
    assert difference() > 1e-3


@pytest.mark.parametrize("attention", [False, True])
def test_all_names_and_shapes_of_the_published_sizes(attention: bool) -> None:
    width = 256 if attention else 128
    options = {"width": width, "attention": attention}
    with torch.device("meta"):
        network = VDMUNet(channels=3, out_channels=3, resolution=32, **options)
        theirs = VDM.fitting(network, options, 32).write(network.state_dict())
    blocks = (
        [f"down.block_{n}" for n in range(32)] + ["mid.block_1", "mid.block_2"] + [f"up.block_{n}" for n in range(33)]
    )
    attentions = ["mid.attn_1"]
    if attention:
        attentions += [f"down.attn_{n}" for n in range(32)] + [f"up.attn_{n}" for n in range(33)]
    expected = {f"{name}/{part}" for name in ("dense0", "dense1", "conv_in", "conv_out") for part in ("kernel", "bias")}
    expected |= {f"GroupNorm_0/{part}" for part in ("scale", "bias")}
    for block in blocks:
        expected |= {f"{block}/{norm}/{part}" for norm in ("GroupNorm_0", "GroupNorm_1") for part in ("scale", "bias")}
        expected |= {f"{block}/{layer}/{part}" for layer in ("conv1", "conv2") for part in ("kernel", "bias")}
        expected |= {f"{block}/cond_proj/kernel"}
        if block.startswith("up"):
            expected |= {f"{block}/nin_shortcut/{part}" for part in ("kernel", "bias")}
    for block in attentions:
        expected |= {f"{block}/{layer}/{part}" for layer in ("q", "k", "v", "proj_out") for part in ("kernel", "bias")}
        expected |= {f"{block}/GroupNorm_0/{part}" for part in ("scale", "bias")}
    assert theirs.keys() == {f"score_model/{name}" for name in expected}
    shapes = {name: tuple(x.shape) for name, x in theirs.items()}
    assert shapes["score_model/conv_in/kernel"] == (3, 3, 15, width)
    assert shapes["score_model/dense0/kernel"] == (width + 1, 4 * width)
    assert shapes["score_model/up.block_32/nin_shortcut/kernel"] == (2 * width, width)
    described = VDM.describe(shapes, 32)
    assert {name: described.options[name] for name in options} == options
    with torch.device("meta"):
        again = VDMUNet(**described.options)
    assert {n: x.shape for n, x in again.state_dict().items()} == {n: x.shape for n, x in network.state_dict().items()}


def test_networks_that_the_layout_has_no_place_for_are_named() -> None:
    sizes = {"channels": 3, "out_channels": 3, "resolution": 8, "width": 32, "blocks": 1}
    for options, message in (
        ({"classes": 3}, "the layout has no place for classes"),
        ({"frequencies": [0]}, r"the layout has no place for model.frequencies=\[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            VDM.fitting(VDMUNet(**sizes | options), options, 8)
