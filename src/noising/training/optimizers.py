"""Optimizers as a training makes them: a rate for every step, and Muon for networks that hold more than matrices."""

from collections.abc import Callable, Iterable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from noising.errors import require

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


def by_factor(factor: Callable[[int], float]) -> MakeScheduler:
    """A scheduler of the rate `factor(step)` times the optimizer's own."""
    return partial(LambdaLR, lr_lambda=partial(_as_number, factor))  # of a partial, a checkpoint restores nothing


def _as_number(factor: Callable[[int], float], step: int) -> float:
    return float(factor(step))


class ScheduledOptions:
    """The options of a scheduler as it was made, which the state of a checkpoint replaces.

    These are its attributes of the names of its constructor's parameters, the phases of OneCycleLR, which depend on
    them, and what it has written into the optimizer's groups.
    """

    def __init__(self, scheduler: LRScheduler, optimizer: Optimizer, before: set[str]) -> None:
        """before: names in the optimizer's groups before the scheduler was made."""
        names = {*signature(type(scheduler)).parameters, "_schedule_phases"} - {"optimizer", "last_epoch"}
        self._own = {name: value for name, value in vars(scheduler).items() if name in names}
        self._of_groups = [
            {name: value for name, value in group.items() if name not in {*before, "initial_lr"}}
            for group in optimizer.param_groups
        ]

    def restore(self, scheduler: LRScheduler) -> None:
        """Set the options of a scheduler again, and where they are others the rate of its step by its closed form."""
        others = any(vars(scheduler).get(name) != value for name, value in self._own.items())
        vars(scheduler).update(self._own)
        groups = scheduler.optimizer.param_groups
        for group, options in zip(groups, self._of_groups, strict=True):
            group.update(options)
        closed_form = getattr(scheduler, "_get_closed_form_lr", None)  # of a rate of 0 the next would be 0 too
        if others and closed_form is not None:
            for group, rate in zip(groups, closed_form(), strict=True):
                group["lr"] = rate


def require_stepping(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take a step as a training does, whose gradients are computed within it.

    Raises ValueError if the optimizer does not have them computed, and whatever it raises itself.
    """
    computed = []

    def closure() -> Tensor:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        computed.append(True)
        return torch.zeros(())

    optimizer.step(closure=closure)  # type: ignore[arg-type]
    require(bool(computed), f"{type(optimizer).__name__}.step does not call its closure, which computes the gradients")


def require_lasting(scheduler: LRScheduler, max_steps: int) -> None:
    """Set a scheduler to the last step of a training. Raises whatever it raises there."""
    scheduler.last_epoch = max_steps - 1
    scheduler.step()


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon for kernels and matrices, as matrices of a row for each output, and AdamW for the rest.

    Both have the same learning rate; `adjust_lr_fn=match_rms_adamw` makes Muon's steps as large as AdamW's. Jordan et
    al., "Muon: An optimizer for hidden layers in neural networks" (2024). https://kellerjordan.github.io/posts/muon
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, **options: Any) -> None:
        """options: of torch.optim.Muon."""
        parameters = list(params)
        self._parts: list[tuple[Optimizer, list[nn.Parameter], list[nn.Parameter]]] = []
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = []
        for make, own in ((partial(torch.optim.Muon, **options), matrices), (AdamW, others)):
            if own:
                # views share the parameters' memory, so that a step of theirs is one of the network's
                views = [nn.Parameter(p.detach().view(len(p), -1) if p.ndim > 1 else p.detach()) for p in own]
                part = make(views, lr=lr)  # type: ignore[call-arg]
                self._parts.append((part, own, views))
                chosen = {name: value for name, value in part.param_groups[0].items() if name != "params"}
                groups.append({**chosen, "params": own})
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step of each, with this optimizer's options and averages."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, (part, own, views) in zip(self.param_groups, self._parts, strict=True):
            part.param_groups[0].update({name: value for name, value in group.items() if name != "params"})
            for parameter, view in zip(own, views, strict=True):
                view.grad = _like(parameter.grad, view)
                part.state[view] = self.state[parameter]  # one mapping of both: a checkpoint has what the part writes
            part.step()
        return loss


def _like(gradient: Tensor | None, view: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.reshape(view.shape)
