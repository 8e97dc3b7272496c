"""The exponential moving average of the weights, which validation, tests and samples use; training uses the raw ones.

After update n the average is θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + n)/(10 + n)): the warm-up keeps the random
initial weights from weighing on short runs. There is one update an optimizer step, whatever the accumulation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class EMA(Callback):
    """float32 averages of the floating-point parameters of `pl_module.denoiser`; buffers stay as they are.

    A checkpoint holds them under "ema": {"decay", "updates", "weights": {name in the denoiser: tensor}}. Its
    "state_dict" always holds the raw weights, even if it is written while the averages are swapped in.

    Raises `ValueError` if `decay` lies outside [0, 1).
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self._shadows: dict[str, Tensor] = {}
        self._denoiser: nn.Module | None = None
        self._last_step = 0
        self._raw: dict[str, Tensor] | None = None
        self._depth = 0
        self._hook: RemovableHandle | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by the parameters' names within the denoiser."""
        return dict(self._shadows)

    def momentum(self) -> float:
        """The factor d of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the averages of a checkpoint; if it has none, the average starts at the current weights."""
        self._denoiser = None
        state = checkpoint.get("ema")
        self.updates = 0 if state is None else int(state["updates"])
        self._shadows = {} if state is None else {name: w.float().clone() for name, w in state["weights"].items()}

    def attach(self, pl_module: LightningModule) -> None:
        """Bind the averages to the module's denoiser, on its device; they start as its weights."""
        denoiser = _denoiser(pl_module)
        parameters = _averaged(denoiser)
        if self._denoiser is not None and self._denoiser is not denoiser:  # the averages of another module
            self._shadows, self.updates = {}, 0
        if not self._shadows:
            self._shadows = {name: p.detach().float().clone() for name, p in parameters.items()}
        elif self._denoiser is not denoiser:
            _check_same(self._shadows, parameters)
            # in the parameters' order, since the update pairs the two lists
            self._shadows = {name: self._shadows[name] for name in parameters}
        self._denoiser = denoiser
        for name, parameter in parameters.items():
            if self._shadows[name].device != parameter.device:  # callback state is restored before the module moves
                self._shadows[name] = self._shadows[name].to(parameter.device)

    @torch.no_grad()
    def update(self, pl_module: LightningModule) -> None:
        """Update the average by the current weights."""
        self.attach(pl_module)
        parameters = [p.detach().float() for p in _averaged(_denoiser(pl_module)).values()]  # float32: no copy
        torch._foreach_lerp_(list(self._shadows.values()), parameters, 1 - self.momentum())
        self.updates += 1

    @contextmanager
    def swapped(self, pl_module: LightningModule) -> Iterator[None]:
        """Let the denoiser compute with the averages. May be nested; undone on exceptions too."""
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out()

    @torch.no_grad()
    def _swap_in(self, pl_module: LightningModule) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self.attach(pl_module)
        denoiser = _denoiser(pl_module)
        parameters = _averaged(denoiser)
        self._raw = {name: p.detach().clone() for name, p in parameters.items()}
        for name, parameter in parameters.items():
            # in place: compiled graphs, DDP and optimizers keep their references
            parameter.copy_(self._shadows[name])

        def restore(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            # a function, since torch sets an attribute of the hook, which a method does not allow
            self._raw_state_dict(module, state, prefix, metadata)

        self._hook = denoiser.register_state_dict_post_hook(restore)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _swap_out(self) -> None:
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth > 0:
            return
        assert self._denoiser is not None
        assert self._raw is not None
        assert self._hook is not None
        for name, parameter in _averaged(self._denoiser).items():
            parameter.copy_(self._raw[name])
        self._hook.remove()
        self._raw, self._hook = None, None

    def _raw_state_dict(self, denoiser: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        """Put the raw weights, under all their names, into a state dict made while the averages are swapped in."""
        assert self._raw is not None
        raw = {id(p): self._raw[name] for name, p in _averaged(denoiser).items()}
        for name, parameter in denoiser.named_parameters(remove_duplicate=False):
            if id(parameter) in raw and prefix + name in state:
                state[prefix + name] = raw[id(parameter)]

    # --- Lightning's hooks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attach(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attach(pl_module)
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last_step:  # equal in the middle of an accumulation
            self._last_step = trainer.global_step
            self.update(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out()

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._depth = min(self._depth, 1)
        self._swap_out()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.attach(pl_module)
        checkpoint["ema"] = {"decay": self.decay, "updates": self.updates, "weights": dict(self._shadows)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.load(checkpoint)


def _denoiser(pl_module: LightningModule) -> nn.Module:
    denoiser = pl_module.denoiser
    assert isinstance(denoiser, nn.Module)
    return denoiser


def _averaged(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in denoiser.named_parameters() if p.is_floating_point()}


def _check_same(shadows: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    shapes = {name: tuple(w.shape) for name, w in shadows.items()}
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    if shapes != expected:
        name = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))[0]
        raise ValueError(
            f"the checkpoint's averaged weights are of another network: {name} has shape {shapes.get(name)} "
            f"there, {expected.get(name)} here; use the options of the run that wrote it"
        )
