"""Muon beside torch's own step by step, the rates of torch's schedulers, and what a checkpoint restores of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

from noising.training.optimizers import MuonWithAdamW, ScheduledOptions, by_factor, require_lasting, require_stepping
from tests.helpers import same

SHAPES = ((6, 2, 3, 3), (5, 4), (7,), (3, 1, 1, 1), ())


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def set_gradients(some: list[nn.Parameter], step: int, without: int | None = None) -> None:
    torch.manual_seed(100 + step)
    for number, parameter in enumerate(some):
        gradient = torch.randn(SHAPES[number]).reshape(parameter.shape)
        parameter.grad = None if number == without else gradient


OPTIONS = {"momentum": 0.9, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_muon_is_torchs_on_flat_matrices_and_adamw_on_the_rest(options: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = MuonWithAdamW(iter(ours), lr=0.02, **options)
    flat = [nn.Parameter(p.detach().reshape(len(p), -1)) for p in theirs if p.ndim > 1]
    rest = [p for p in theirs if p.ndim <= 1]
    muon, adamw = torch.optim.Muon(flat, lr=0.02, **options), AdamW(rest, lr=0.02)
    mixed = [flat[0], flat[1], rest[0], flat[2], rest[1]]
    for step in range(5):
        without = 1 if step == 2 else None
        set_gradients(ours, step, without)
        set_gradients(mixed, step, without)
        for group in (*optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = 0.02 / (step + 1)
        optimizer.step()
        muon.step()
        adamw.step()
        for one, other in zip(ours, mixed, strict=True):
            assert torch.equal(one, other.reshape(one.shape))
    assert not torch.equal(ours[0], parameters()[0])


def test_muon_goes_on_from_its_state_to_the_last_bit() -> None:
    whole = parameters()
    optimizer = MuonWithAdamW(whole, lr=0.02)
    for step in range(3):
        set_gradients(whole, step)
        optimizer.step()
    resumed = [nn.Parameter(p.detach().clone()) for p in whole]
    other = MuonWithAdamW(resumed, lr=0.5)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    same(other.state_dict(), optimizer.state_dict())
    assert [*optimizer.state_dict()["state"][0]] == ["momentum_buffer"]
    assert {*optimizer.state_dict()["state"][3]} == {"step", "exp_avg", "exp_avg_sq"}
    for step in range(3, 6):
        for some, own in ((whole, optimizer), (resumed, other)):
            set_gradients(some, step)
            own.step()
        same([p.detach() for p in resumed], [p.detach() for p in whole])


def test_muon_computes_the_gradients_of_a_closure() -> None:
    (weight, *_) = some = parameters()
    optimizer = MuonWithAdamW(some, lr=0.02)

    def closure() -> torch.Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    before = weight.detach().clone()
    assert optimizer.step(closure) == before.square().sum()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("chosen", [[0, 1], [2, 4]], ids=["matrices", "vectors"])
def test_muon_without_matrices_or_without_the_rest(chosen: list[int]) -> None:
    some = parameters()
    set_gradients(some, 0)
    optimizer = MuonWithAdamW([some[number] for number in chosen], lr=0.02)
    assert len(optimizer.param_groups) == 1
    optimizer.step()
    changed = [number for number, p in enumerate(parameters()) if not torch.equal(p, some[number])]
    assert changed == chosen


@pytest.mark.parametrize("options", [{"beats": 3}, {"lr": -1.0}, {"adjust_lr_fn": "nope"}])
def test_muon_refuses_what_torchs_refuses(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        MuonWithAdamW(parameters(), **options)


def rates(make: Callable[[Optimizer], LRScheduler], steps: int) -> list[float]:
    """The rates of the first steps of a training at the rate 0.5."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_a_factor_of_the_step() -> None:
    assert rates(by_factor(lambda step: 1 / (1 + step)), 4) == [0.5, 0.25, 0.5 / 3, 0.125]
    found = rates(by_factor(lambda step: torch.tensor(0.25)), 2)  # type: ignore[arg-type,return-value]
    assert found == [0.125, 0.125]
    assert {*map(type, found)} == {float}


def test_a_checkpoint_holds_nothing_of_a_factor() -> None:
    class Falling:
        def __init__(self, steps: int) -> None:
            self.steps = steps

        def __call__(self, step: int) -> float:
            return 1 - step / self.steps

    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    old, new = by_factor(Falling(10))(optimizer), by_factor(Falling(20))(optimizer)
    new.load_state_dict(old.state_dict())
    assert new.lr_lambdas[0](5) == 0.75  # type: ignore[attr-defined]


class TestScheduledOptions:
    """A training of some steps, cut off at a step, that goes on with options of its own."""

    def rates(self, first: Callable[[Optimizer], Any], cut: int, then: Callable[[Optimizer], Any], end: int) -> Any:
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
        before = {*optimizer.param_groups[0]}
        scheduler, found = first(optimizer), []
        for step in range(end):
            if step == cut:
                states = optimizer.state_dict(), scheduler.state_dict()
                optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
                scheduler = then(optimizer)
                options = ScheduledOptions(scheduler, optimizer, before)
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
                options.restore(scheduler)
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    @pytest.mark.parametrize(
        "make",
        [
            lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=8),
            lambda optimizer: StepLR(optimizer, 3),
            lambda optimizer: CosineAnnealingLR(optimizer, 8),
            by_factor(lambda step: 1 / (1 + step)),
        ],
        ids=["OneCycleLR", "StepLR", "CosineAnnealingLR", "function"],
    )
    def test_the_same_options_go_on_to_the_last_bit(self, make: Callable[[Optimizer], LRScheduler]) -> None:
        assert self.rates(make, 5, make, 8) == rates(make, 8)

    def test_one_cycle_of_more_steps(self) -> None:
        def longer(optimizer: Optimizer) -> LRScheduler:
            return OneCycleLR(optimizer, 0.25, total_steps=16)

        found = self.rates(lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=8), 8, longer, 16)
        assert found[9:] == rates(longer, 16)[9:]  # that of step 8 was set in the shorter one

    def test_a_cosine_of_more_steps_rises_from_its_end(self) -> None:
        found = self.rates(lambda o: CosineAnnealingLR(o, 8), 8, lambda o: CosineAnnealingLR(o, 16), 16)
        closed = [0.25 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
        assert found[8:] == pytest.approx(closed[8:], rel=1e-12)

    def test_the_options_of_a_scheduler_of_ones_own(self) -> None:
        class Halving(LRScheduler):
            def __init__(self, optimizer: Optimizer, every: int, last_epoch: int = -1) -> None:
                self.every, self.taken = every, 0
                super().__init__(optimizer, last_epoch)

            def get_lr(self) -> list[float]:  # type: ignore[override]
                self.taken += 1
                return [rate * 0.5 ** (self.taken // self.every) for rate in self.base_lrs]

        found = self.rates(lambda o: Halving(o, 2), 4, lambda o: Halving(o, 4), 8)
        assert found == [0.5, 0.25, 0.25, 0.125, 0.125, 0.25, 0.25, 0.125]  # what it has counted is the checkpoint's


def test_torchs_schedulers_follow_their_closed_forms() -> None:
    cosine = [0.25 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates(lambda optimizer: CosineAnnealingLR(optimizer, 6), 6) == pytest.approx(cosine, rel=1e-12)
    assert rates(lambda optimizer: StepLR(optimizer, 2), 5) == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])


class TestRequireStepping:
    def test_a_step_is_taken_as_in_a_training(self) -> None:
        some = [nn.Parameter(torch.zeros(2))]
        require_stepping(SGD(some, lr=0.5), some)
        assert some[0].tolist() == [-0.5, -0.5]

    def test_an_optimizer_that_passes_over_its_closure(self) -> None:
        class Deaf(SGD):
            def step(self, closure: Any = None) -> Any:
                return super().step()

        some = [nn.Parameter(torch.zeros(2))]
        with pytest.raises(ValueError, match=r"^Deaf\.step does not call its closure, which computes the gradients$"):
            require_stepping(Deaf(some, lr=0.5), some)


def test_a_schedule_that_ends_too_early_raises() -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler = OneCycleLR(optimizer, 0.5, total_steps=8)
    optimizer.step()
    require_lasting(scheduler, 8)
    with pytest.raises(ValueError, match="total steps is 8"):
        require_lasting(scheduler, 9)
