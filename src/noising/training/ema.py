"""The exponential moving average of the weights, which validation, tests and samples use; training uses the raw ones.

After update n the average is θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + n)/(10 + n)): the warm-up keeps the random
initial weights from weighing on short runs. There is one update an optimizer step, whatever the accumulation.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


def averaged(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have an average, by name."""
    return {name: parameter for name, parameter in denoiser.named_parameters() if parameter.is_floating_point()}


class EMA(Callback):
    """float32 averages of the floating-point parameters of a denoiser; buffers stay as they are.

    As a callback it averages `pl_module.denoiser`. In a loop of one's own, call `update(denoiser)` after each step, and
    compute with the averages within `swapped(denoiser)`.

    A checkpoint holds them under "ema": {"decay", "updates", "weights": {name in the denoiser: tensor}}. Its
    "state_dict" always holds the raw weights, even if it is written while the averages are swapped in. Raises
    `ValueError` if `decay` lies outside [0, 1).
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {}
        """The averages by the parameters' names within the denoiser."""
        self._denoiser: nn.Module | None = None
        self._parameters: list[nn.Parameter] = []  # of the denoiser, in the order of the averages
        self._swapped = False
        self._evaluation = ExitStack()

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the averages of a checkpoint."""
        self._denoiser = None
        self.updates = int(checkpoint["ema"]["updates"])
        self.weights = {name: weight.float().clone() for name, weight in checkpoint["ema"]["weights"].items()}

    def attach(self, denoiser: nn.Module) -> None:
        """Bind the averages to a denoiser, on its device; they start as its weights.

        Raises `ValueError` if the averages are of another network.
        """
        parameters = averaged(denoiser)
        if not self.weights:
            self.weights = {name: p.detach().float().clone() for name, p in parameters.items()}
        elif self._denoiser is not denoiser:
            shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
            expected = {name: tuple(p.shape) for name, p in parameters.items()}
            for name in sorted({*shapes, *expected}):
                if shapes.get(name) != expected.get(name):
                    raise ValueError(
                        f"the checkpoint's averaged weights are of another network: {name} has shape "
                        f"{shapes.get(name)} there, {expected.get(name)} here; use the options of the run that wrote it"
                    )
        self._denoiser, self._parameters = denoiser, list(parameters.values())
        # in the parameters' order, since the update pairs the two lists; restored before the module moves to its device
        self.weights = {name: self.weights[name].to(p.device) for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, denoiser: nn.Module) -> None:
        """Update the average by the denoiser's present weights."""
        if self._denoiser is not denoiser:
            self.attach(denoiser)
        parameters = [p.float() for p in self._parameters]  # float32: no copy
        torch._foreach_lerp_(list(self.weights.values()), parameters, 1 - self.decay_now())
        self.updates += 1

    def decay_now(self) -> float:
        """The decay d of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @contextmanager
    def swapped(self, denoiser: nn.Module) -> Iterator[None]:
        """Let the denoiser compute with the averages. May be nested; undone on exceptions too."""
        if self._swapped:
            yield
            return
        self.attach(denoiser)
        parameters = self._parameters
        raw = {id(p): p.detach().clone() for p in parameters}

        def put_raw_weights(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
            """Put the raw weights, under all their names, into a state dict made meanwhile."""
            for name, parameter in module.named_parameters(remove_duplicate=False):
                if id(parameter) in raw and prefix + name in state:
                    state[prefix + name] = raw[id(parameter)]

        hook = denoiser.register_state_dict_post_hook(put_raw_weights)  # type: ignore[no-untyped-call]
        self._swapped = True
        try:
            _assign(parameters, self.weights.values())
            yield
        finally:
            _assign(parameters, raw.values())
            hook.remove()
            self._swapped = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attach(_of(pl_module))

    on_train_start = on_fit_start  # what a checkpoint has brought is moved to the device

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.update(_of(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation.enter_context(self.swapped(_of(pl_module)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation.close()

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._evaluation.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.attach(_of(pl_module))
        checkpoint["ema"] = {"decay": self.decay, "updates": self.updates, "weights": self.weights}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.load(checkpoint)


class HalfLifeEMA(EMA):
    """An average whose decay is given by a half-life in images, so that it means the same for every batch size.

    d = ½^(batch/h) with h = min(half_life, ramp_up · images seen): a weight of h images ago counts half.
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), table 7, and their code.
    https://arxiv.org/abs/2206.00364
    """

    def __init__(self, half_life: float = 500_000, ramp_up: float | None = 0.05, batch_size: int = 1) -> None:
        """batch_size: images of an optimizer step, over all devices and accumulation; ramp_up: None: h = half_life."""
        if half_life <= 0:
            raise ValueError(f"half_life must be above 0 images, got {half_life}")
        if ramp_up is not None and ramp_up <= 0:
            raise ValueError(f"ramp_up must be above 0, or null, got {ramp_up}")
        super().__init__(0.5 ** (batch_size / half_life))
        self.half_life, self.ramp_up, self.batch_size = half_life, ramp_up, batch_size

    def decay_now(self) -> float:
        seen = self.updates * self.batch_size
        images = self.half_life if self.ramp_up is None else min(self.half_life, self.ramp_up * seen)
        return 0.5 ** (self.batch_size / images) if images else 0.0


class PowerFunctionEMA(EMA):
    """An average in which the weights after n images count in proportion to n^γ, for a width of `std`.

    d = (1 − batch/n)^(γ + 1) after n images: the profile is stretched with the length of the training, so that its
    standard deviation is always the share `std` of it. Before the first step the average is the weights themselves.
    With batches of one size batch/n is 1 over the number of steps. Karras et al., "Analyzing and Improving the Training
    Dynamics of Diffusion Models" (2024), section 3.1. https://arxiv.org/abs/2312.02696
    """

    def __init__(self, std: float = 0.1) -> None:
        """std: of the profile, relative to the length of the training; at most √(1/12), where all steps count alike."""
        super().__init__(0.0)
        self.std, self.exponent = std, power_exponent(std)

    def update(self, denoiser: nn.Module) -> None:
        """Update the average by the denoiser's present weights; `decay` is that of the update."""
        self.decay = self.decay_now()
        super().update(denoiser)

    def decay_now(self) -> float:
        return float((1 - 1 / (self.updates + 1)) ** (self.exponent + 1))


def power_exponent(std: float) -> float:
    """γ of the density (γ + 1) τ^γ on [0, 1] whose standard deviation is std: the largest root of a cubic.

    The variance is (γ + 1)/((γ + 2)² (γ + 3)).
    """
    if not 0 < std <= 12**-0.5:
        raise ValueError(f"std must lie between 0 and 0.2886, got {std}")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def _of(pl_module: LightningModule) -> nn.Module:
    denoiser = pl_module.denoiser
    assert isinstance(denoiser, nn.Module)
    return denoiser


@torch.no_grad()
def _assign(parameters: Iterable[nn.Parameter], values: Iterable[Tensor]) -> None:
    """Write in place: compiled graphs, DDP and optimizers keep their references."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
