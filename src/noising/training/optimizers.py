"""Optimizers as a training makes them: a rate for every step, and Muon for networks that hold more than matrices."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


def by_factor(factor: Callable[[int], float]) -> MakeScheduler:
    """A scheduler of the rate `factor(step)` times the optimizer's own."""
    return partial(LambdaLR, lr_lambda=factor)


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
