"""Sums over ranks stay what they are when moved, and are gathered by one collective a state."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.diffusion.likelihood.sums import SumsOverRanks


class Total(SumsOverRanks):
    """The sum of what it is given."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sums("total", 2)

    def update(self, values: Tensor) -> None:
        self.total += values

    def compute(self) -> list[float]:
        found: list[float] = self.total.tolist()
        return found


VALUES = torch.tensor([1 / 3, 257 + 2**-40], dtype=torch.float64)


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float32),
        lambda module: module.half(),
        lambda module: module.float(),
        lambda module: pickle.loads(pickle.dumps(module)),
    ],
    ids=["bfloat16", "float32", "half", "float", "pickle"],
)
def test_sums_stay_float64(convert: Callable[[nn.Module], Any]) -> None:
    metric = Total()
    around = nn.Sequential(nn.Linear(1, 1), metric)  # type: ignore[arg-type]
    metric.update(VALUES)
    metric = convert(around)[1]
    assert metric.compute() == VALUES.tolist()
    metric.update(VALUES)
    assert metric.compute() == (2 * VALUES).tolist()
    metric.reset()
    assert metric.total.dtype == torch.float64
    assert not around.state_dict().keys() - {"0.weight", "0.bias"}


@pytest.fixture
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_one_collective_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics' own gathers after a barrier and a collective of the shapes."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        work = getattr(torch.distributed, name)
        return lambda *args, **options: (calls.append(name), work(*args, **options))[1]

    for name in ("all_gather", "barrier", "all_reduce", "broadcast", "all_gather_into_tensor"):
        monkeypatch.setattr(torch.distributed, name, counted(name))
    metric = Total()
    metric.update(VALUES)
    assert metric.compute() == VALUES.tolist()
    assert calls == ["all_gather"]
    assert metric.compute() == VALUES.tolist()
    assert calls == ["all_gather"]  # until the next update


def test_a_rank_without_values_is_no_cause_for_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Total().compute() == [0, 0]
