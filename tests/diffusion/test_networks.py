"""Networks of any signature: where each takes its class, what of its output is the image, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noising.diffusion.networks import Adapted, adapted, output_of, require_fitting

X, LABEL, CLASS = torch.zeros(2, 1, 4, 4), torch.tensor([1.0, 2.0]), torch.tensor([3, 0])


class Recording(nn.Module):
    """Gives its image times a weight, and notes what else it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.given: Any = "nothing"

    def note(self, x: Tensor, given: Any) -> Tensor:
        self.given = given
        return self.weight * x


class WithClassLabel(Recording):
    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        return self.note(x, class_label)


class WithY(Recording):
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.note(x, y)


class WithKeyword(Recording):
    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True, *, class_labels: Tensor | None = None) -> Tensor:
        return self.note(x, class_labels)


class WithThird(Recording):
    def forward(self, x: Tensor, t: Tensor, kind: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return self.note(x, kind)


class WithRest(Recording):
    def forward(self, *args: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.note(args[0], labels)


class Named(Recording):
    """Its image and its noise label have names that a class has elsewhere."""

    def forward(self, y: Tensor, label: Tensor) -> Tensor:
        return self.note(y, None)


class WithSwitch(Recording):
    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True, **rest: Any) -> Tensor:
        return self.note(x, None)


@pytest.mark.parametrize("kind", [WithY, WithKeyword, WithThird, WithRest])
def test_the_class_comes_under_the_networks_own_name(kind: type[Recording]) -> None:
    network = kind()
    model = adapted(network, classes=10)
    model(X, LABEL, class_label=CLASS)
    assert torch.equal(network.given, CLASS)
    model(X, LABEL, class_label=None)  # the row after the last is that of no class
    assert network.given.tolist() == [10, 10]
    adapted(network)(X, LABEL, class_label=None)
    assert network.given is None


def test_a_network_of_the_denoisers_own_signature_stays_as_it_is() -> None:
    network = WithClassLabel()
    assert adapted(network) is network
    assert adapted(network, classes=10) is network


@pytest.mark.parametrize("kind", [Named, WithSwitch])
def test_a_network_without_a_class_is_given_none(kind: type[Recording]) -> None:
    network = kind()
    model = adapted(network)
    assert isinstance(model, Adapted)
    assert torch.equal(model(X + 1, LABEL, class_label=None), X + 1)
    assert network.given is None
    with pytest.raises(ValueError, match=f"^{kind.__name__}.forward takes no class label: give it a third parameter"):
        adapted(network, classes=10)


@pytest.mark.parametrize(
    "output", [X, (X, None), [X], SimpleNamespace(sample=X)], ids=["tensor", "tuple", "list", "sample"]
)
def test_the_image_of_an_output(output: object) -> None:
    assert output_of(output) is X


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"sample": X, "kl": 3}, "dict of sample, kl"),
        (None, "NoneType"),
        ((), "tuple"),
        ((None, X), "tuple"),
        (X.numpy(), "ndarray"),
        (SimpleNamespace(sample=lambda: X), "SimpleNamespace"),
    ],
)
def test_an_output_without_an_image_is_named(output: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^it returns {said}: expected a tensor"):
        output_of(output)


class Output(nn.Module):
    """Gives what a function makes of x and the class label, times a weight that is trained."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.ones(()))
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm2d(3)
        self.dropout.eval()

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Any:
        assert not self.training
        assert not self.norm.training
        return self.make(self.norm(x) * self.weight, noise_label, class_label)


def fitting(make: Any, classes: int = 0) -> Output:
    network = Output(make)
    require_fitting(network, LABEL, channels=3, out_channels=6, resolution=4, classes=classes)
    return network


def double(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=1)


def test_a_network_that_fits_is_left_as_it_was() -> None:
    network = fitting(lambda x, noise_label, class_label: double(x))
    assert network.training
    assert network.norm.training
    assert not network.dropout.training
    assert network.norm.running_mean is not None
    assert not network.norm.running_mean.any()
    assert network.weight.grad is None


def test_it_is_tried_on_every_noise_label_and_the_first_and_no_class() -> None:
    given: list[Any] = []

    def make(x: Tensor, noise_label: Tensor, class_label: Tensor | None) -> Tensor:
        given.append((x, noise_label, class_label))
        return double(x)

    fitting(make, classes=5)
    ((x, noise_label, class_label),) = given
    assert x.shape == (2, 3, 4, 4)
    assert noise_label is LABEL
    assert class_label.tolist() == [0, 5]
    assert class_label.dtype == torch.int64
    fitting(make)
    assert given[1][2] is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: x, r"for x of shape \(2, 3, 4, 4\) it returns \(2, 3, 4, 4\), but \(2, 6, 4, 4\) is expected"),
        (lambda x: double(x)[:1], r".* it returns \(1, 6, 4, 4\)"),  # would be broadcast, and trained
        (lambda x: double(x)[..., ::2], r".* it returns \(2, 6, 4, 2\)"),
        (lambda x: double(x).long(), "it returns int64, not floats"),
        (lambda x: double(x).detach(), "it cannot be trained: its output has no gradient"),
        (lambda x: {"x": double(x)}, "it returns dict of x: expected a tensor"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        fitting(lambda x, noise_label, class_label: make(x))


def test_modes_come_back_after_a_network_that_raises() -> None:
    network = Output(lambda *given: {}["nothing"])
    with pytest.raises(KeyError):
        require_fitting(network, LABEL, 3, 6, 4)
    assert network.training
    assert not network.dropout.training
