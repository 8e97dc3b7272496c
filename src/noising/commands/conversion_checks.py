"""Checks of a conversion of weights before anything is written: by other people's outputs, and by real images."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from noising.data.image_data import ImageData
from noising.diffusion.denoiser import Denoiser
from noising.diffusion.drawing import in_evaluation
from noising.diffusion.levels import NoiseLevel
from noising.diffusion.likelihood.decoders import Decoder
from noising.diffusion.likelihood.terms import step_terms
from noising.diffusion.transitions import Chain
from noising.errors import ConfigError, one_line
from noising.randomness import Streams

LIMIT = 1e-4
"""The limit, as a part of the largest output: another convolution library differs by some 1e-6, another order of rows
by 0.6 to 1.4."""
IMAGES, TRAINING_IMAGES = 32, 2000
LEVELS = (5.0, 3.0, 1.0)
"""λ of the images whose noise is predicted: at much noise the linear guess is nearly the best there is."""
NAMES = {
    "x": ("F_x", "x"),
    "noise_label": ("F_c_noise", "noise_label", "timesteps", "labels", "t"),
    "class_label": ("class_label", "y", "class_labels"),
    "augmentation": ("augmentation", "augment_labels"),
    "output": ("F", "output", "out"),
}
"""Tensors of a fixture: what the network is given, and what it gives; with or without inputs/ and outputs/ before."""


class Check(NamedTuple):
    """A comparison that a conversion must pass; holds: None without a limit."""

    name: str
    measured: str
    limit: str
    holds: bool | None


def same_output(denoiser: Denoiser, file: str) -> Check:
    """The outputs of a network against those stored in a fixture. Raises ConfigError if the file is no fixture."""
    network = denoiser.model
    try:
        stored = {name.split("/")[-1]: tensor for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"check={file} is no safetensors file ({error})") from error
    stored |= _of_vdm(denoiser, stored)
    found = {ours: next((stored[n] for n in names if n in stored), None) for ours, names in NAMES.items()}
    x, noise_label, output = found["x"], found["noise_label"], found["output"]
    if x is None or noise_label is None or output is None:
        raise ConfigError(f"check={file} must hold x, noise_label and output; it holds {', '.join([*stored][:5])}, ...")
    class_label = found["class_label"]
    if class_label is not None and class_label.ndim == 2:  # one-hot, zeros for no class
        class_label = torch.where(class_label.any(1), class_label.argmax(1), class_label.shape[1])
    condition: dict[str, Tensor | None] = {} if class_label is None else {"class_label": class_label}
    if found["augmentation"] is not None:
        condition["augmentation"] = found["augmentation"]
    network.eval()
    try:
        with torch.no_grad():
            ours = network(x, noise_label, **condition)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(f"check={file} is not of this network: {one_line(error)}") from error
    return compared(f"outputs of {file}", ours, output)


def _of_vdm(denoiser: Denoiser, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a fixture of VDM's code under the names here; nothing for other fixtures.

    Its images have their channels last, its γ is −λ of images scaled as by the run's schedule, and what it appends to
    the embedding is a label of the augmentation here.
    """
    if not stored.keys() >= {"z", "gamma", "eps_hat"} or stored["gamma"].ndim != 1 or stored["z"].ndim != 4:
        return {}
    shift = getattr(denoiser.schedule.geometry, "shift", 0.0)
    log_snr = shift - stored["gamma"].double()
    level = NoiseLevel(torch.zeros_like(log_snr), log_snr, *denoiser.schedule.scales(log_snr))
    found = {
        "x": stored["z"].permute(0, 3, 1, 2),
        "noise_label": denoiser.noise_label(level),
        "output": stored["eps_hat"].permute(0, 3, 1, 2),
    }
    return found | ({"augmentation": stored["conditioning"][:, None]} if "conditioning" in stored else {})


def compared(name: str, ours: Tensor, theirs: Tensor) -> Check:
    """The largest difference between two outputs, as a part of the largest output."""
    if ours.shape != theirs.shape:
        return Check(name, f"{tuple(ours.shape)}", f"{tuple(theirs.shape)}", False)
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    return Check(name, f"{difference:.1e}", f"{LIMIT:.0e}", difference < LIMIT)


class LinearGuess:
    """The best linear guess of the noise, from the mean and the covariance of training images.

    With the covariance V diag(v) Vᵀ, x̂ = m + V diag(α v/(α² v + σ²)) Vᵀ (x_t − α m).
    """

    def __init__(self, images: Tensor) -> None:
        """images: (N, C, H, W) in [−1, 1]."""
        flat = images.flatten(1).double()
        self.mean = flat.mean(0)
        _, values, self.axes = torch.linalg.svd(flat - self.mean, full_matrices=False)  # (N,), (N, D)
        self.variances = values**2 / len(flat)

    def noise(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """ε̂ (B, C, H, W)."""
        centred = x_t.flatten(1).double() - alpha * self.mean
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        x = self.mean + (centred @ self.axes.T * gain) @ self.axes
        noise: Tensor = (x_t.flatten(1) - alpha * x) / sigma
        return noise.to(x_t.dtype).reshape(x_t.shape)


def of_images(denoiser: Denoiser, data: ImageData, classes: int, decoder: Decoder, timesteps: int) -> list[Check]:
    """Checks by real images: the noise predicted at three levels, a step of the chain, and a term of the bound."""
    count = min(IMAGES, len(data.test.pixels))
    x, labels = data.batch("test", slice(count))
    class_label = labels if classes else None
    noise = Streams(0, "conversion", range(count)).normal(x.shape[1:])
    guess = LinearGuess(data.scale(data.train.pixels[:TRAINING_IMAGES]))
    found = []
    with in_evaluation(denoiser):
        for log_snr in LEVELS:
            t = denoiser.schedule.time(torch.tensor([log_snr], dtype=torch.float64)).expand(count)
            level = denoiser.schedule(t)
            x_t = level.perturb(x, noise)
            error = (denoiser.at(x_t, level, class_label=class_label).noise - noise).square().mean()
            alpha, sigma = (float(field.flatten()[0]) for field in (level.alpha, level.sigma))
            linear = (guess.noise(x_t, alpha, sigma) - noise).square().mean()
            name = f"mean squared error of the noise at λ = {log_snr:g}, and of the best linear guess"
            found.append(Check(name, f"{error:.4f}", f"{linear:.4f}", bool(error < linear)))
        chain = Chain.uniform(denoiser.schedule, timesteps)
        step = torch.full((count,), max(2, timesteps // 2))
        transition = chain[step]
        x_t = transition.later.perturb(x, noise)
        prediction = denoiser.at(x_t, transition.later, class_label=class_label)
        apart = denoiser.reverse(transition, x_t, prediction).mean - transition.mean(x_t, x)
        found.append(Check("a step of the chain at t = ½, from the posterior mean", _size(apart), "", None))
        terms = step_terms(denoiser, chain, x, x_t, step, prediction, decoder) / (x[0].numel() * math.log(2))
        found.append(Check("its term L_t of the bound, bits/dim", f"{terms.mean():.2e}", "", None))
    return found


def _size(difference: Tensor) -> str:
    return f"{difference.square().mean().sqrt():.2e}"


def table(checks: list[Check]) -> list[Mapping[str, str | None]]:
    """The checks as they are stored."""
    words = {True: "yes", False: "no", None: None}
    return [{"check": c.name, "measured": c.measured, "limit": c.limit, "holds": words[c.holds]} for c in checks]
