"""A recipe at published size is a contract: what it builds is what the paper has, number by number, with its source.

Rows of published networks, as their papers and their code say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from noising.config.instantiate import make
from noising.config.theory import build_sampler
from noising.data.image_data import ImageData, Splits
from noising.diffusion.samplers import Sampler
from noising.experiment import Experiment
from noising.training.ema import EMA
from tests.helpers import CONF

DATA = {"cifar10": (32, 10), "imagenet64": (64, 1000), "ffhq64": (64, 0), "imagefolder": (256, 1000)}
"""Resolution and classes; a user's own images are taken for ImageNet at 256."""


class Unread(ImageData):
    """A data set of which only the facts are known."""

    name = "unread"

    def __init__(self, cfg: DictConfig, resolution: int, classes: int) -> None:
        super().__init__(cfg.data.batch_size, cfg.data.get("flip", False))
        self.channels, self.resolution, self.levels, self.classes = 3, resolution, 256, classes
        self.declared = resolution, 256

    def load(self) -> Splits:
        raise AssertionError("no image is needed")


class Fixed(nn.Module):
    """A network that gives one number everywhere, and zero for what it says of the variance."""

    def __init__(self, outputs: int, number: Tensor) -> None:
        super().__init__()
        self.outputs, self.number = outputs, number

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        mean = self.number * torch.ones_like(x)
        return torch.cat([mean, *[torch.zeros_like(x)] * (self.outputs - 1)], dim=1)

    def log_variance(self, noise_label: Tensor) -> Tensor:
        """An uncertainty that changes no weight."""
        return torch.zeros_like(noise_label)


def cosine_alpha_bar(i: int, steps: int) -> float:
    """ᾱ of improved DDPM's equation 17, each β at most .999."""
    return float(np.cumprod(1 - cosine_betas(steps))[i - 1]) if i else 1.0


def cosine_betas(steps: int) -> Any:
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def snr(log_snr: float, t: float) -> float:
    """The simplified loss, ‖ε − ε̂‖² = SNR ‖x − x̂‖²."""
    return math.exp(log_snr)


def edm_weight(log_snr: float, t: float) -> float:
    """(σ² + σ_d²)/(σ σ_d)² with σ_d = ½. Karras et al. (2022), table 1."""
    variance = math.exp(-log_snr)
    return (variance + 0.25) / (0.25 * variance)


def flow_weight(log_snr: float, t: float) -> float:
    """‖(ε − x) − v̂‖² = ‖x − x̂‖²/t²."""
    return t**-2


def velocity_weight(log_snr: float, t: float) -> float:
    """‖v − v̂‖² = ‖x − x̂‖²/max(t, 0.05)², where their t is 1 − t. Li & He (2025), table 1."""
    return max(t, 0.05) ** -2


def bound_weight(log_snr: float, t: float) -> float:
    """T L_t in bits/dim by the means, where the variance is halfway between log β̃ and log β; T = 4,000, cosine."""
    i = round(4000 * t)
    beta, before, after = cosine_betas(4000)[i - 1], cosine_alpha_bar(i - 1, 4000), cosine_alpha_bar(i, 4000)
    variance = beta * math.sqrt((1 - before) / (1 - after))
    on_image = math.sqrt(before) * beta / (1 - after)
    return 4000 * on_image**2 / (2 * math.log(2) * variance)


Ends = tuple[float, float]


class Contract(NamedTuple):
    """One published row.

    parameters: of the network; ends: α²/(α² + σ²) after the first of T steps and after the last; labels: what the
    network sees at t = 1/1000, ½ and 1; weight: of ‖x − x̂‖²/D in the loss, a function of (λ, t); rates: the learning
    rate after 0, 2,500 and 50,000 steps; half_life: of the average, in images, once training is long; evaluations: of
    the network by its sampler; others: options whose value is the paper's.
    """

    parameters: int
    ends: Ends
    labels: tuple[float, float, float]
    weight: Callable[[float, float], float]
    rates: tuple[float, float, float]
    half_life: float
    evaluations: int
    others: dict[str, Any]


def half_life(decay: float, batch: int) -> float:
    return batch * math.log(0.5) / math.log(decay)


LATE = 10**9
"""Updates after which an average is asked for its decay."""


def half_life_of_power(gamma: float, batch: int) -> float:
    """Of the weights τ^γ after that many updates, in images."""
    return half_life((1 - 1 / (LATE + 1)) ** (gamma + 1), batch)


def linear_ends() -> Ends:
    betas = np.linspace(1e-4, 0.02, 1000)
    return 1 - betas[0], float(np.prod(1 - betas))


def cosine_ends(steps: int) -> Ends:
    return cosine_alpha_bar(1, steps), cosine_alpha_bar(steps, steps)


def share(sigma: float) -> float:
    return 1 / (1 + sigma**2)


def vdm_gamma(t: float) -> float:
    """−13.3 + 18.3 t, two parameters in float32: −λ of images times 255/256."""
    return float(np.float32(-13.3)) + float(np.float32(18.3)) * t


def vdm_share(t: float) -> float:
    return 1 / (1 + math.exp(vdm_gamma(t) - 2 * math.log(255 / 256)))


def vdm_label(t: float) -> float:
    return 1000 * (vdm_gamma(t) + 13.3) / 18.3


def quarter_log(t: float) -> float:
    """ln(σ)/4 where log σ is linear in t from .002 to 80."""
    return (math.log(0.002) + t * math.log(80 / 0.002)) / 4


CLIPPED, FREE = {"trainer.gradient_clip_val": 1.0}, {"trainer.gradient_clip_val": None}
IDDPM: dict[str, Any] = {
    "ends": cosine_ends(4000),
    "labels": (0.75, 499.75, 999.75),  # of steps 4, 2000 and 4000 counted from 0, in thousandths of 4,000
    "rates": (1e-4, 1e-4, 1e-4),
    "half_life": half_life(0.9999, 128),
    "evaluations": 4000,
}
ON_CIFAR = {"data.batch_size": 128, "timesteps": 4000, "trainer.max_steps": 500_000, "model.dropout": 0.3, **FREE}
SIGMAS = share(0.002 * (80 / 0.002) ** 0.001), share(80.0)
LABELS = quarter_log(0.001), quarter_log(0.5), quarter_log(1)
EDM: dict[str, Any] = {"ends": SIGMAS, "labels": LABELS, "weight": edm_weight}
OF_EDM = {"sampler.clip": None, "grid.rho": 7.0, "times.mean": -1.2, "times.std": 1.2, "sampler.churn": 0.0, **FREE}
OF_EDM2 = {"sampler.clip": None, "grid.rho": 7.0, "times.mean": -0.8, "times.std": 1.6, "sampler.churn": 0.0, **FREE}
OF_EDM2 |= {"data.batch_size": 2048, "label_dropout": 0.0, "optimizer.betas": [0.9, 0.99], "data.flip": False}
OF_EDM2 |= {"optimizer.eps": 8.1e-13, "model.clip_features": 256.0}  # 1e-8 of a sum over 12,288 numbers
OF_EDM_CIFAR = {"data.batch_size": 512, "trainer.max_steps": 200_000_000 // 512, "model.dropout": 0.13, **OF_EDM}
OF_EDM_CIFAR |= {"augmentation.probability": 0.12, "data.flip": False}
VPSDE: dict[str, Any] = {"ends": (math.exp(-0.5 * 19.9e-6 - 1e-4), math.exp(-0.5 * 19.9 - 0.1))}
VPSDE |= {"labels": (0.999, 499.5, 999.0)}
JIT: dict[str, Any] = {"ends": (0.999**2 / (0.999**2 + 0.001**2), 0.0), "labels": (0.999, 0.5, 0.0)}
JIT |= {"weight": velocity_weight}
OF_JIT = {"data.batch_size": 1024, "data.flip": True, "label_dropout": 0.1, "optimizer.betas": [0.9, 0.95], **FREE}
OF_JIT |= {"optimizer.weight_decay": 0.0, "sampler.clip": None, "times.mean": 0.8, "times.std": 0.8}
OF_JIT |= {"objective.sigma_floor": 0.05, "parameterization._target_": "noising.diffusion.parameterizations.CleanImage"}

CONTRACTS = {
    # scripts/run_cifar.py of github.com/hojonathanho/diffusion, 1e0dceb; the paper's section 4 and appendix B
    "ddpm_cifar10": Contract(
        35_746_307,
        linear_ends(),
        (0.0, 499.0, 999.0),
        snr,
        (0.0, 1e-4, 2e-4),
        half_life(0.9999, 128),
        1000,
        {"data.batch_size": 128, "model.dropout": 0.1, "data.flip": True, **CLIPPED},
    ),
    # README and script_util.py of github.com/openai/improved-diffusion, 1bc7bbb
    "iddpm_cifar10_simple": Contract(52_542_979, weight=snr, **IDDPM, others=ON_CIFAR),
    "iddpm_cifar10_hybrid": Contract(
        52_546_438, weight=snr, **IDDPM, others=ON_CIFAR | {"objective.bound_weight": 0.001}
    ),
    "iddpm_cifar10_vlb": Contract(52_546_438, weight=bound_weight, **IDDPM, others=ON_CIFAR | {"times.history": 10}),
    "iddpm_imagenet64": Contract(
        121_063_942,
        weight=snr,
        **IDDPM,
        others=ON_CIFAR | {"model.dropout": 0.0, "trainer.max_steps": 1_500_000, "objective.bound_weight": 0.001},
    ),
    # README of github.com/openai/guided-diffusion, 22e0df8
    "adm_imagenet64": Contract(
        295_904_454,
        cosine_ends(1000),
        (0.0, 499.0, 999.0),
        snr,
        (3e-4, 3e-4, 3e-4),
        half_life(0.9999, 2048),
        250,
        {"data.batch_size": 2048, "model.dropout": 0.1, "label_dropout": 0.0, **FREE},
    ),
    # train.py, models.py and diffusion/ of github.com/facebookresearch/DiT, ed81ce2; no row of CIFAR-10 is published
    "dit_s_cifar10": Contract(
        32_480_280,  # beside them the fixed table of positions
        linear_ends(),
        (0.0, 499.0, 999.0),
        snr,
        (1e-4, 1e-4, 1e-4),
        half_life(0.9999, 256),
        250,
        {"data.batch_size": 256, "data.flip": True, "label_dropout": 0.1, "optimizer.weight_decay": 0.0}
        | {"objective.bound_weight": 1 / 1000, **FREE},
    ),
    # train.py, loss.py, training_loop.py and generate.py of github.com/NVlabs/edm, 008a4e5
    "edm_cifar10": Contract(
        55_733_891,
        **EDM,
        rates=(0.0, 1e-3 * 2500 * 512 / 1e7, 1e-3),
        half_life=500_000,
        evaluations=35,
        others=OF_EDM_CIFAR,
    ),
    "edm_cifar10_classes": Contract(
        55_735_299,
        **EDM,
        rates=(0.0, 1e-3 * 2500 * 512 / 1e7, 1e-3),
        half_life=500_000,
        evaluations=35,
        others=OF_EDM_CIFAR | {"label_dropout": 0.0},
    ),
    "edm_ffhq64": Contract(
        61_805_571,
        **EDM,
        rates=(0.0, 2e-4 * 2500 * 256 / 1e7, 2e-4),
        half_life=500_000,
        evaluations=79,
        others=OF_EDM | {"data.batch_size": 256, "model.dropout": 0.05, "augmentation.probability": 0.15},
    ),
    "edm_imagenet64": Contract(
        295_899_267,
        **EDM,
        rates=(0.0, 1e-4, 1e-4),  # 10 million images are 2,441 steps
        half_life=50_000_000,
        evaluations=511,
        others=OF_EDM
        | {"data.batch_size": 4096, "label_dropout": 0.0, "model.dropout": 0.1, "augmentation": None}
        | {"sampler.churn": 40.0, "sampler.churn_min": 0.05, "sampler.churn_max": 50.0, "sampler.churn_noise": 1.003},
    ),
    # train_edm2.py, training_loop.py and generate_images.py of github.com/NVlabs/edm2, 4bf8162; γ by the paper's cubic
    **{
        f"edm2_imagenet64_{size}": Contract(
            parameters,
            **EDM,
            rates=(0.0, rate * 2500 * 2048 / 1e7, rate * math.sqrt(35_000 / 50_000)),
            half_life=half_life_of_power(gamma, 2048),
            evaluations=63,
            others=OF_EDM2
            | {"model.width": width, "model.dropout": dropout, "ema.std": std, "trainer.max_steps": mebi_images * 512},
        )
        for size, parameters, width, rate, dropout, mebi_images, std, gamma in (
            ("xs", 124_710_949, 128, 0.012, 0.0, 1024, 0.1, 6.937203937601809),
            ("s", 280_209_381, 192, 0.010, 0.0, 1024, 0.075, 10.289116448983853),
            ("m", 497_803_173, 256, 0.009, 0.1, 2048, 0.06, 13.632531257338883),
        )
    },
    # configs/vp/cifar10_ddpmpp_continuous.py and losses.py of github.com/yang-song/score_sde_pytorch, cb1f359
    "sde_ddpmpp_cifar10": Contract(
        61_804_419,
        **VPSDE,
        weight=snr,
        rates=(0.0, 1e-4, 2e-4),
        half_life=half_life(0.9999, 128),
        evaluations=1000,
        others={"data.batch_size": 128, "data.flip": True, **CLIPPED},
    ),
    # configs/cifar10_uvit.py, configs/imagenet64_uvit_large.py, sde.py and utils.py of github.com/baofff/U-ViT, ce55170
    "uvit_cifar10": Contract(
        44_255_328,
        **VPSDE,
        weight=snr,
        rates=(0.0, 2e-4, 2e-4),
        half_life=half_life(0.9999, 128),
        evaluations=1000,
        others={"data.batch_size": 128, "data.flip": True, "optimizer.betas": [0.99, 0.999], **FREE}
        | {"optimizer.weight_decay": 0.03, "trainer.max_steps": 500_000},
    ),
    "uvit_imagenet64": Contract(
        286_827_652,
        **VPSDE,
        weight=snr,
        rates=(0.0, 1.5e-4, 3e-4),
        half_life=half_life(0.9999, 1024),
        evaluations=50,
        others={"data.batch_size": 1024, "label_dropout": 0.0, "optimizer.betas": [0.99, 0.99], **FREE}
        | {"optimizer.weight_decay": 0.03, "trainer.max_steps": 300_000, "model.null_class": False},
    ),
    # README, main_jit.py and denoiser.py of github.com/LTH14/JiT; a copy in king398/DiffusionFusion, 5209f29
    "jit_imagenet256": Contract(
        131_123_712,  # 131,320,320 with the fixed positions
        **JIT,
        rates=(0.0, 2e-4 * 2500 / 6255, 2e-4),  # 5 epochs of 1,251 steps
        half_life=half_life(0.9999, 1024),
        evaluations=98,  # theirs 99: the first step is Euler's here
        others=OF_JIT | {"trainer.max_steps": 600 * 1251, "trainer.precision": "bf16-mixed"},
    ),
    "jit_s_cifar10": Contract(
        32_557_488,  # 32,582,064 with the fixed positions
        **JIT,
        rates=(0.0, 2e-4, 2e-4),  # 5 epochs of 49 steps
        half_life=half_life(0.9999, 1024),
        evaluations=98,
        others=OF_JIT,
    ),
    # ImageGeneration/configs and losses.py of github.com/gnobitab/RectifiedFlow, 5a1fd4d
    "rectified_flow_cifar10": Contract(
        61_804_419,
        (0.999**2 / (0.999**2 + 0.001**2), 0.0),
        (998.001, 499.5, 0.0),
        flow_weight,
        (0.0, 1e-4, 2e-4),
        half_life(0.999999, 128),
        126,  # the paper's adaptive solver takes 127 on average
        {"data.batch_size": 128, "model.dropout": 0.15, "data.flip": True, **CLIPPED},
    ),
    # configs/cifar10.py, model_vdm.py and experiment.py of github.com/google-research/vdm, 0c60a89
    "vdm_cifar10": Contract(
        30_578_179,  # 30,578,181 with the two of its schedule
        (vdm_share(1e-4), vdm_share(1.0)),
        (vdm_label(0.001), vdm_label(0.5), vdm_label(1.0)),
        lambda log_snr, t: 0.5 * 18.3 * math.exp(log_snr) / math.log(2),
        (2e-4 / 101, 2e-4, 2e-4),  # a rise in 100 steps
        half_life(0.9999, 128),
        1000,
        {"data.batch_size": 128, "model.dropout": 0.1, "data.flip": False, "trainer.max_steps": 10_000_000, **FREE}
        | {"optimizer.betas": [0.9, 0.99], "optimizer.weight_decay": 0.01, "sampler.clip": None},
    ),
}


def breaches(recipe: str, *overrides: str) -> dict[str, Any]:
    """What a recipe does not keep of its contract: the fact, with what it is and what it should be."""
    contract = CONTRACTS[recipe]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={recipe}", *overrides])
    experiment = Experiment(cfg, Unread(cfg, *DATA[str(cfg.data._target_).rsplit(".", 1)[-1].lower()]))
    theory, found = experiment.recipe, {}
    found["ends"] = (ends(experiment), contract.ends, 1e-9)
    times = torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    found["labels"] = (theory.noise_label(theory.schedule(times)).flatten().tolist(), contract.labels, 1e-9)
    expected, weights = zip(*(weight_at(experiment, contract, log_snr) for log_snr in (-4.0, 0.0, 4.0)), strict=True)
    found["weight"] = (weights, expected, 1e-4)
    found["rates"] = (rates(experiment), contract.rates, 1e-3)
    ema = make(cfg.ema, "ema", EMA, batch_size=cfg.data.batch_size)
    ema.updates = LATE
    found["half_life"] = ([half_life(ema.decay_now(), cfg.data.batch_size)], [contract.half_life], 1e-6)
    sampler: Sampler = build_sampler(cfg, cfg.timesteps, theory.schedule)
    denoiser = theory.denoiser(Fixed(theory.variance.outputs, torch.zeros(())))
    found["evaluations"] = ([sampler.evaluations(denoiser)], [contract.evaluations], 0)
    facts = experiment.facts_of_network
    with torch.device("meta"):
        network = make(cfg.model, "model", nn.Module, **facts)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    found["parameters"] = ([parameters], [contract.parameters], 0)
    wrong = {
        name: (list(is_), list(should))
        for name, (is_, should, tolerance) in found.items()
        if not np.allclose(is_, should, rtol=tolerance, atol=1e-12 + tolerance * 1e-3 * (name == "rates"))
    }
    for option, value in contract.others.items():
        if option_of(cfg, option) != value:
            wrong[option] = (option_of(cfg, option), value)
    return wrong


def option_of(cfg: Any, path: str) -> Any:
    """The value of an option; None also where the group that it belongs to is left out."""
    for name in path.split("."):
        if cfg is None:
            return None
        cfg = cfg.get(name)
    return cfg


def ends(experiment: Experiment) -> list[float]:
    """α²/(α² + σ²) at the first and the last of T steps."""
    schedule = experiment.recipe.schedule
    times = torch.tensor([1 / experiment.config.timesteps, 1.0], dtype=torch.float64)
    return torch.sigmoid(schedule(times).log_snr).flatten().tolist()  # type: ignore[no-any-return]


def rates(experiment: Experiment) -> list[float]:
    """The learning rate after 0, 2,500 and 50,000 steps."""
    optimizer = experiment._optimizer([nn.Parameter(torch.zeros(1))])
    scheduler: Any = experiment._lr_schedule(optimizer)
    (factor,) = scheduler.lr_lambdas
    return [optimizer.param_groups[0]["initial_lr"] * factor(step) for step in (0, 2500, 50_000)]


def weight_at(experiment: Experiment, contract: Contract, log_snr: float) -> tuple[float, float]:
    """The contract's weight at about λ and the recipe's, which is the curvature of the loss in x̂."""
    theory, steps = experiment.recipe, experiment.config.timesteps
    t = theory.schedule.time(torch.tensor([log_snr], dtype=torch.float64))
    t = (t * steps).round().clamp(2, steps) / steps
    level = theory.schedule(t)
    number = torch.zeros((), dtype=torch.float64, requires_grad=True)
    denoiser = theory.denoiser(Fixed(theory.variance.outputs, number))
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    loss = theory.objective(denoiser, x, t, x)["loss"].sum()
    (slope,) = torch.autograd.grad(loss, number, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, number)
    one = torch.ones((), dtype=torch.float64)
    image = theory.denoiser(Fixed(theory.variance.outputs, one)).at(x, level).x[0, 0, 0, 0]
    return contract.weight(float(level.log_snr.detach()), float(t)), float((curvature / 2 / image.square()).detach())


@pytest.mark.parametrize("recipe", CONTRACTS)
def test_a_recipe_is_the_papers(recipe: str) -> None:
    assert breaches(recipe) == {}


def test_every_recipe_at_published_size_has_a_contract() -> None:
    small = {path.stem for path in (CONF / "experiment").glob("*.yaml") if "/data: " not in path.read_text()}
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} - small - {"mnist"} == CONTRACTS.keys()


@pytest.mark.parametrize("recipe", CONTRACTS)
def test_a_recipes_head_says_its_source_and_its_number(recipe: str) -> None:
    head = [line for line in (CONF / "experiment" / f"{recipe}.yaml").read_text().splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in head)
    assert "https://arxiv.org/abs/" in text
    assert "Published: " in text
    assert "Measured here: " in text


COUNTS = {  # of each YAML with the data of its name; a learned variance, classes and augmentation where the paper has
    "ddpm": (35_746_307, {"resolution": 32}),
    "iddpm": (52_546_438, {"resolution": 32, "out_channels": 6}),
    "iddpm_64": (121_063_942, {"resolution": 64, "out_channels": 6}),
    "adm_64": (295_904_454, {"resolution": 64, "out_channels": 6, "classes": 1000}),
    "ddpmpp": (55_732_739, {"resolution": 32}),
    "ddpmpp_64": (61_805_571, {"resolution": 64, "augmentation_labels": 9}),
    "ncsnpp": (56_397_827, {"resolution": 32, "augmentation_labels": 9}),
    "ncsnpp_64": (62_761_091, {"resolution": 64, "augmentation_labels": 9}),
    "sde_ddpmpp": (61_804_419, {"resolution": 32}),
    "edm2_64": (280_209_381, {"resolution": 64, "classes": 1000}),
    "vdm": (30_578_179, {"resolution": 32}),
    "uvit": (44_255_328, {"resolution": 32}),
    "jit": (32_557_488, {"resolution": 32, "classes": 10}),
    "dit": (32_480_280, {"resolution": 32, "out_channels": 6, "classes": 10}),
}


@pytest.mark.parametrize("model", sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "unet"))
def test_a_models_yaml_is_the_papers_network(model: str) -> None:
    count, facts = COUNTS[model]
    node = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    with torch.device("meta"):
        network = make(node, "model", nn.Module, **{"channels": 3, "out_channels": 3, "classes": 0} | facts)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    digits = f"{count:,}"
    assert digits in (CONF / "model" / f"{model}.yaml").read_text()


BROKEN = {
    "parameters": "model.scale_shift=true",
    "ends": "schedule.beta_end=0.021",
    "labels": "noise_label=scaled_time",
    "weight": "weighting=min_snr",
    "rates": "lr_schedule.warmup=100",
    "half_life": "ema.decay=0.999",
    "evaluations": "sampler.steps=250",
    "trainer.gradient_clip_val": "trainer.gradient_clip_val=null",
    "data.flip": "data.flip=false",
}


@pytest.mark.parametrize("fact", BROKEN)
def test_a_broken_contract_is_seen(fact: str) -> None:
    assert list(breaches("ddpm_cifar10", BROKEN[fact])) == [fact]
